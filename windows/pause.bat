@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "MINUTES="
set "REASON="
set "WAIT="
set "LIMIT="

:argument
set "WORD=%~1"
if not defined WORD goto arguments_read
set "WORD=%WORD:"=%"
if not defined WORD goto usage
set "WORD=%WORD:~0,200%"
if "%WORD%"=="/?" goto usage
if /i "%WORD%"=="/wait" goto argument_wait
if /i "%WORD:~0,6%"=="/wait:" goto argument_limit
if "%WORD:~0,1%"=="/" goto usage
if defined MINUTES goto argument_reason
if defined REASON goto argument_reason
set "UNIT="
for /f "delims=0123456789" %%a in ("0%WORD%") do set "UNIT=%%a"
if not defined UNIT goto argument_minutes
if "%WORD%"=="%UNIT%" goto argument_reason
rem `2h` is not a reason, and not a number of minutes.
for %%a in (s m h d min) do if /i "%UNIT%"=="%%a" goto usage
:argument_reason
if defined REASON set "WORD=%REASON% %WORD%"
set "REASON=%WORD:~0,200%"
shift
goto argument
:argument_minutes
rem With leading zeros, `set /a` would read an octal number.
set "MINUTES=%WORD%"
:argument_zeros
if "%MINUTES:~0,1%"=="0" set "MINUTES=%MINUTES:~1%"
if not defined MINUTES goto usage
if "%MINUTES:~0,1%"=="0" goto argument_zeros
if not "%MINUTES:~0,5%"=="%MINUTES%" goto usage
shift
goto argument
:argument_limit
set "LIMIT=%WORD:~6%"
set "REST="
if not defined LIMIT goto usage
for /f "delims=0123456789" %%a in ("0%LIMIT%") do set "REST=%%a"
if defined REST goto usage
if "%LIMIT:~0,1%"=="0" goto usage
if not "%LIMIT:~0,6%"=="%LIMIT%" goto usage
:argument_wait
set "WAIT=1"
shift
goto argument

:arguments_read
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
call "%~dp0common.bat" self
if not "%RC%"=="0" goto ended
set "END=until resume.bat"
if defined MINUTES set "END=for %MINUTES% min"
if defined REASON set "END=%END%: %REASON%"
for /f "delims=" %%a in ("%NAME% (role %ROLE%): pause %END%") do echo %%a

rem Without an end the pause is a tag, which Serf keeps across reboots, and which a load balancer that is down now
rem sees later. With an end, the load balancers store the pause, because a tag has no end.
set "UNTAGGED="
if defined MINUTES goto asking
call "%~dp0common.bat" tags -set "lbagent=paused"
if not "%RC%"=="0" set "UNTAGGED=1"
:asking
set "VERB=pause"
set "LASTING="
set "UNTIL="
if not defined MINUTES goto lasting
rem The same end for every load balancer and every retry. Without it the time would start at each answer.
call "%~dp0common.bat" until
set "LASTING= for=%MINUTES%m"
if defined UNTIL set "LASTING= until=%UNTIL%"
:lasting
set "BECAUSE="
rem The blank at the end keeps a last backslash from the quote behind it.
if defined REASON set "BECAUSE= reason=%REASON% "
set "PAYLOAD=%NAME%%LASTING%%BECAUSE%"
set "ELAPSED=0"
call "%~dp0common.bat" ask
call "%~dp0common.bat" show
if not "%RC%"=="0" goto unconfirmed
if not defined MINUTES goto tagged
if not "%TAGGED%"=="paused" goto tagged
rem The last command counts: this one has an end. The tag is removed last, so that the server stays paused.
call "%~dp0common.bat" tags -delete lbagent
if not "%RC%"=="0" goto ended
:tagged
if not defined WAIT goto confirmed

set "SHOWN=%SESSIONS%"
:waiting
if "%SESSIONS%"=="0" goto confirmed
if not defined LIMIT goto waiting_on
if %ELAPSED% GEQ %LIMIT% goto still_open
:waiting_on
call "%~dp0common.bat" sleep 2
set /a ELAPSED+=2
if not defined MINUTES goto waiting_asks
rem The waiting does not change the end of the pause.
set /a LEFT=MINUTES*60-ELAPSED
if %LEFT% LSS 1 goto over
if not defined UNTIL set "PAYLOAD=%NAME% for=%LEFT%s%BECAUSE%"
:waiting_asks
call "%~dp0common.bat" ask
if not "%RC%"=="0" goto lost
if not "%SESSIONS%"=="%SHOWN%" call "%~dp0common.bat" show
set "SHOWN=%SESSIONS%"
goto waiting

:confirmed
if defined UNTAGGED goto untagged
set "RC=0"
if "%SESSIONS%"=="0" echo Paused: no new requests, no open sessions.
if not "%SESSIONS%"=="0" echo Paused: no new requests. Sessions still open: %SESSIONS%; wait for them, or run pause.bat with /wait.
goto ended
:untagged
set "RC=1"
echo Paused, but the tag is not set: a load balancer that is down now will not see the pause.
goto ended
:lost
call "%~dp0common.bat" show
:unconfirmed
set "RC=1"
echo NOT confirmed: requests may still arrive; see the answers above, and run pause.bat again.
goto ended
:still_open
set "RC=1"
echo Paused: no new requests. Sessions still open after %ELAPSED% s: %SESSIONS%.
goto ended
:over
set "RC=1"
echo The %MINUTES% min are over; sessions are still open.
:ended
call "%~dp0common.bat" clean
exit /b %RC%

:usage
echo pause.bat [MINUTES] [REASON] [/wait[:SECONDS]]
echo.
echo Takes this server out of balancing until resume.bat, or for MINUTES (at most 99999), and prints the answer of each
echo load balancer. /wait returns when no session to this server is open, or after SECONDS.
echo.
echo   0  every load balancer has confirmed it
echo   1  not confirmed, or sessions still open after SECONDS
echo   2  nothing was done: the agent does not run, or the arguments are invalid
exit /b 2
