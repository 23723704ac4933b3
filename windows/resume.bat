@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "WORD=%~1"
if defined WORD goto usage
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
call "%~dp0common.bat" self
if not "%RC%"=="0" goto ended
for /f "delims=" %%a in ("%NAME% (role %ROLE%): resume") do echo %%a
set "TAG_STAYS="
if not defined TAGGED goto asking
call "%~dp0common.bat" tags -delete lbagent
if not "%RC%"=="0" set "TAG_STAYS=1"
:asking
rem Serf needs one or two seconds to send the change of the tag: after `still paused by its tag`, retry.
set "VERB=resume"
set "PAYLOAD=%NAME%"
set "ELAPSED=0"
call "%~dp0common.bat" ask
call "%~dp0common.bat" show
if defined TAG_STAYS set "RC=1"
if "%RC%"=="0" echo Resumed: this server gets requests again.
if not "%RC%"=="0" echo NOT confirmed: see the answers above, and run resume.bat again.
:ended
call "%~dp0common.bat" clean
exit /b %RC%

:usage
echo resume.bat
echo.
echo Puts this server back into balancing, and prints the answer of each load balancer.
echo.
echo   0  every load balancer has confirmed it
echo   1  not confirmed
echo   2  nothing was done: the agent does not run, or the arguments are invalid
exit /b 2
