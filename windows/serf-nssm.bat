@echo off
rem The service `serf` by NSSM, which runs serf.exe itself: Ctrl-C makes it leave the cluster. Called by install.bat.
setlocal EnableExtensions DisableDelayedExpansion
set "HERE=%~dp0"
set "HERE=%HERE:~0,-1%"
set "NSSM=%HERE%\nssm.exe"
"%NSSM%" status serf >nul 2>&1
if not "%ERRORLEVEL%"=="0" "%NSSM%" install serf "%HERE%\serf.exe" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf DisplayName "Serf agent (lbagent)" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf Description "Makes this server a member of the Serf cluster of its load balancers" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf Application "%HERE%\serf.exe" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppParameters agent -config-dir=conf >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppDirectory "%HERE%" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf Start SERVICE_AUTO_START >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
rem Leaving takes up to three seconds. NSSM waits one and a half by default, and the node would count as failed.
"%NSSM%" set serf AppStopMethodConsole 10000 >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
rem Also after status 0, for example if another node has its name.
"%NSSM%" set serf AppExit Default Restart >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppRestartDelay 10000 >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppStdout "%HERE%\data\agent.log" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppStderr "%HERE%\data\agent.log" >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppRotateFiles 1 >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
"%NSSM%" set serf AppRotateBytes 5000000 >nul
if not "%ERRORLEVEL%"=="0" exit /b 1
exit /b 0
