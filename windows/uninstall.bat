@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "WORD=%~1"
if defined WORD goto usage
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
set "ENROLMENT=none"
if exist "%CONF%\enrolment.txt" for /f "usebackq tokens=1" %%a in ("%CONF%\enrolment.txt") do set "ENROLMENT=%%a"
call "%~dp0leave-cluster.bat" 0
if not "%ERRORLEVEL%"=="0" goto not_left
set "RC=0"
set "RC=0"
if "%ENROLMENT%"=="task" call :task
if "%ENROLMENT%"=="winsw" call :winsw
if "%ENROLMENT%"=="nssm" call :nssm
if not "%RC%"=="0" goto not_removed
netsh advfirewall firewall delete rule name="serf (lbagent)" >nul 2>&1
rem By name: other files there belong to the user.
for %%f in (agent.json node.json rpc.txt enrolment.txt task.xml) do if exist "%CONF%\%%f" del /q "%CONF%\%%f"
for %%f in (snapshot left agent.log agent.log.old) do if exist "%DATA%\%%f" del /q "%DATA%\%%f"
del /q "%DATA%\*.tags" 2>nul
rd "%CONF%" 2>nul
rd "%DATA%" 2>nul
echo Removed: the agent, its settings and its tags. The scripts, serf.exe and the ROLE.json with their key remain here.
goto ended
:not_left
echo Nothing was removed.
set "RC=1"
goto ended
:not_removed
for /f "delims=" %%a in ("%ENROLMENT%") do echo The %%a `serf` could not be removed: run this as administrator.
:ended
call "%~dp0common.bat" clean
exit /b %RC%

rem A file that was removed by hand is not an error; a file that cannot be removed is.
:task
schtasks /delete /tn serf /f >nul
if "%ERRORLEVEL%"=="0" exit /b 0
schtasks /query /tn serf >nul 2>&1
if "%ERRORLEVEL%"=="0" set "RC=1"
exit /b 0
:winsw
"%HERE%\serf-service.exe" uninstall >nul
if "%ERRORLEVEL%"=="0" exit /b 0
sc query serf >nul 2>&1
if "%ERRORLEVEL%"=="0" set "RC=1"
exit /b 0
:nssm
"%HERE%\nssm.exe" remove serf confirm >nul
if "%ERRORLEVEL%"=="0" exit /b 0
sc query serf >nul 2>&1
if "%ERRORLEVEL%"=="0" set "RC=1"
exit /b 0

:usage
echo uninstall.bat
echo.
echo Leaves the cluster and removes what install.bat has created: the task or service, the firewall rule, conf and data.
echo.
echo   0  removed, or nothing was there
echo   1  the agent could not be stopped, or the task or service could not be removed
echo   2  the arguments are invalid
exit /b 2
