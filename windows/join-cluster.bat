@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "HOW=%~1"
if defined HOW if /i not "%HOW%"=="/agent" goto usage
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
if not exist "%CONF%\agent.json" goto not_installed
call "%~dp0common.bat" answers
if "%RC%"=="0" goto already
if "%RC%"=="3" goto already
if exist "%DATA%\left" del /q "%DATA%\left"
if /i "%HOW%"=="/agent" goto agent

set "ENROLMENT=none"
for /f "usebackq tokens=1" %%a in ("%CONF%\enrolment.txt") do set "ENROLMENT=%%a"
if "%ENROLMENT%"=="winsw" goto by_service
if "%ENROLMENT%"=="nssm" goto by_service
if "%ENROLMENT%"=="task" goto by_task
rem In its own console, so that the agent keeps running when the console of this script is closed.
start "serf" /min /d "%HERE%" "%ComSpec%" /d /c .\join-cluster.bat /agent
goto started
:by_service
sc start serf >nul
goto started
:by_task
schtasks /run /tn serf >nul

:started
set "COUNT=0"
:started_wait
set /a COUNT+=1
if "%COUNT%"=="30" goto not_started
call "%~dp0common.bat" sleep 1
call "%~dp0common.bat" answers
if "%RC%"=="2" goto started_wait
if "%RC%"=="3" goto already
set "COUNT=0"
:joined_wait
set "JOINED="
"%SERF%" members -status alive -tag "role=%LB_ROLE%" >"%WORK%\said.txt" 2>&1
for /f "usebackq tokens=1,3" %%a in ("%WORK%\said.txt") do (
    if "%%b"=="alive" set "JOINED=1"
    if "%%b"=="alive" echo   %%a
)
if defined JOINED goto joined
set /a COUNT+=1
if "%COUNT%"=="15" goto not_joined
call "%~dp0common.bat" sleep 1
goto joined_wait
:joined
echo Joined the cluster of these load balancers.
set "RC=0"
goto ended
:not_joined
for /f "delims=" %%a in ("%LB_ROLE%") do echo The agent runs, but sees no load balancer of role %%a yet.
echo It keeps trying; check retry_join, encrypt_key and the firewall, and see data\agent.log.
set "RC=1"
goto ended
:not_started
echo The agent did not start within 30 s: see data\agent.log.
set "RC=2"
goto ended
:already
echo The agent runs already.
set "RC=0"
goto ended
:not_installed
echo conf\agent.json: missing; run install.bat first.
set "RC=2"
goto ended

:agent
rem The program of the service and the task: the agent, restarted whenever it ends, until leave-cluster.bat.
rem Serf also ends with 0 if another node has its name: only `left` means that it was requested to leave.
call "%~dp0common.bat" clean
pushd "%HERE%"
:agent_run
for %%f in ("data\agent.log") do if %%~zf0 GEQ 50000000 move /y "data\agent.log" "data\agent.log.old" >nul
"%SERF%" agent -config-dir=conf >>"data\agent.log" 2>&1
>>"data\agent.log" echo The agent ended with %ERRORLEVEL%.
if exist "data\left" goto agent_left
if not exist "conf\agent.json" goto agent_left
call "%~dp0common.bat" sleep 10
if exist "data\left" goto agent_left
if exist "conf\agent.json" goto agent_run
:agent_left
popd
exit /b 0

:ended
call "%~dp0common.bat" clean
exit /b %RC%

:usage
echo join-cluster.bat [/agent]
echo.
echo Starts the Serf agent, by the service or the task that install.bat has created, and waits until it sees a load balancer.
echo /agent runs the agent in this console until leave-cluster.bat; the service and the task use it.
echo.
echo   0  the agent runs, and sees a load balancer (or ran already)
echo   1  it runs, but sees none yet
echo   2  it does not run, or the arguments are invalid
exit /b 2
