@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "SECONDS=5"
set "HOW="
:argument
set "WORD=%~1"
if not defined WORD goto arguments_read
set "REST="
for /f "delims=0123456789" %%a in ("0%~1") do set "REST=%%a"
if not defined REST set "SECONDS=%~1"
if defined REST if /i not "%~1"=="/agent" goto usage
if defined REST set "HOW=agent"
shift
goto argument

:arguments_read
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
rem Makes join-cluster.bat /agent not restart it.
if exist "%DATA%" >"%DATA%\left" echo leave-cluster.bat was here
call "%~dp0common.bat" answers
if "%RC%"=="3" goto not_allowed
set "ENROLMENT=none"
if exist "%CONF%\enrolment.txt" for /f "usebackq tokens=1" %%a in ("%CONF%\enrolment.txt") do set "ENROLMENT=%%a"
if "%HOW%"=="agent" set "ENROLMENT=none"
rem A service that is not stopped would restart the agent.
if "%ENROLMENT%"=="winsw" sc stop serf >nul 2>&1
if "%ENROLMENT%"=="nssm" sc stop serf >nul 2>&1
if "%RC%"=="2" goto not_running
if "%ENROLMENT%"=="winsw" call :gone
if "%ENROLMENT%"=="nssm" call :gone
if "%RC%"=="2" goto left
"%SERF%" leave >"%WORK%\said.txt" 2>&1
call :gone
if not "%RC%"=="2" goto not_left
:left
rem The load balancers receive the leave within two seconds; keep the services running until then.
if not "%SECONDS%"=="0" call "%~dp0common.bat" sleep "%SECONDS%"
echo This server has left the cluster.
set "RC=0"
goto ended
:not_running
echo The agent does not run, nothing was done:
for /f "usebackq delims=" %%a in ("%WORK%\said.txt") do echo   %%a
set "RC=0"
goto ended
:not_allowed
rem The agent keeps running, and must be restarted when it ends.
if exist "%DATA%\left" del /q "%DATA%\left"
echo The agent requires its token, which is in conf\rpc.txt: run this as administrator.
set "RC=2"
goto ended
:not_left
echo The agent still runs:
for /f "usebackq delims=" %%a in ("%WORK%\said.txt") do echo   %%a
set "RC=1"
:ended
call "%~dp0common.bat" clean
exit /b %RC%

:gone
rem RC is 2 if the agent no longer answers; this waits up to 15 s.
set "COUNT=0"
:gone_wait
call "%~dp0common.bat" answers
if "%RC%"=="2" exit /b 0
set /a COUNT+=1
if "%COUNT%"=="15" exit /b 0
call "%~dp0common.bat" sleep 1
goto gone_wait

:usage
echo leave-cluster.bat [SECONDS] [/agent]
echo.
echo Leaves the cluster: no load balancer sends requests here until join-cluster.bat. Returns another SECONDS (5) later.
echo A pause stays. /agent stops the agent only, not its service; the service of WinSW uses it.
echo.
echo   0  left, or the agent did not run
echo   1  the agent still runs
echo   2  access was denied, or the arguments are invalid
exit /b 2
