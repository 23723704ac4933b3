@echo off
setlocal EnableExtensions DisableDelayedExpansion
set "ROLE="
set "ADDRESS="
set "NODE="
set "HOW=task"
set "RPC=127.0.0.1:7373"

:argument
set "WORD=%~1"
if not defined WORD goto arguments_read
set "WORD=%WORD:"=%"
if /i "%WORD%"=="/name" goto argument_name
if /i "%WORD%"=="/as" goto argument_as
if /i "%WORD%"=="/rpc" goto argument_rpc
if "%WORD:~0,1%"=="/" goto usage
if defined ADDRESS goto usage
if defined ROLE set "ADDRESS=%WORD%"
if not defined ROLE set "ROLE=%WORD%"
shift
goto argument
:argument_name
set "NODE=%~2"
if not defined NODE goto usage
goto argument_two
:argument_as
set "HOW="
for %%a in (task winsw nssm none) do if /i "%~2"=="%%a" set "HOW=%%a"
if not defined HOW goto usage
goto argument_two
:argument_rpc
set "RPC=%~2"
if not defined RPC goto usage
:argument_two
shift
shift
goto argument

:arguments_read
if not defined ADDRESS goto usage
call "%~dp0common.bat" settings
if not "%RC%"=="0" exit /b 2
if not defined NODE for /f "delims=" %%a in ('hostname') do set "NODE=%%a"

rem All checks come before anything is written.
set "WRONG="
for /f "delims=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-" %%x in ("x%ROLE%") do set "WRONG=ROLE: use letters, digits, dots, - and _"
rem IPv4 has dots; IPv6 has brackets, without which the agent would not start.
set "DOTTED="
for /f "tokens=2 delims=." %%x in ("%ADDRESS%") do if not "%%x"=="" set "DOTTED=1"
if not defined DOTTED if not "%ADDRESS:~0,1%"=="[" set "WRONG=ADDRESS: use an IP address of this server, IPv6 in brackets"
for /f "delims=ABCDEFabcdef0123456789.:[]" %%x in ("0%ADDRESS%") do set "WRONG=ADDRESS: use an IP address of this server, or ADDRESS:PORT"
for /f "delims=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-:[]" %%x in ("0%RPC%") do set "WRONG=/rpc: use ADDRESS:PORT"
for /f "delims=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-" %%x in ("x%NODE%") do set "WRONG=/name: use letters, digits, dots, - and _"
if not defined WRONG if "%HERE:~0,2%"=="\\" set "WRONG=the agent cannot run from a share; copy this folder to C:\serf"
if not defined WRONG if "%HERE:~2%"=="" set "WRONG=the agent cannot run in the root of a drive; copy these files to C:\serf"
if not defined WRONG if not exist "%HERE%\serf.exe" set "WRONG=serf.exe: missing; copy it to the folder of install.bat"
if not defined WRONG if not exist "%HERE%\%ROLE%.json" set "WRONG=%ROLE%.json: missing; copy web.json, and change its tags_file to data/%ROLE%.tags"
if not defined WRONG if "%HOW%"=="winsw" if not exist "%HERE%\serf-service.exe" set "WRONG=serf-service.exe: missing; copy WinSW here under this name"
if not defined WRONG if "%HOW%"=="nssm" if not exist "%HERE%\nssm.exe" set "WRONG=nssm.exe: missing; copy it to the folder of install.bat"
set "BEFORE=%HOW%"
if exist "%CONF%\enrolment.txt" for /f "usebackq tokens=1" %%a in ("%CONF%\enrolment.txt") do set "BEFORE=%%a"
if not defined WRONG if not "%BEFORE%"=="%HOW%" set "WRONG=/as: already installed as %BEFORE%; run uninstall.bat first, or use /as %BEFORE%"
if defined WRONG goto refused
set "TAGS_FILE="
set "OPEN="
for /f "usebackq tokens=1,2 delims=:, " %%a in ("%HERE%\%ROLE%.json") do (
    if "%%~a"=="tags_file" set "TAGS_FILE=%%~b"
    if "%%~a"=="CHANGE-ME" set "OPEN=1"
    if "%%~b"=="CHANGE-ME" set "OPEN=1"
)
if not "%TAGS_FILE%"=="data/%ROLE%.tags" set "WRONG=%ROLE%.json: tags_file must be data/%ROLE%.tags, which has the role"
if defined OPEN set "WRONG=%ROLE%.json: CHANGE-ME found; replace it by your values"
if defined WRONG goto refused

if not exist "%CONF%" md "%CONF%"
if not exist "%DATA%" md "%DATA%"
rem The system runs the programs in this folder, and it has the keys: no other user may read or write it.
rem S-1-5-18 is the system, S-1-5-32-544 the administrators, in every language.
icacls "%HERE%" /inheritance:r /grant:r "*S-1-5-18:(OI)(CI)F" "*S-1-5-32-544:(OI)(CI)F" >nul
if not "%ERRORLEVEL%"=="0" goto not_administrator

rem A user who controls the agent can pause any server, so the agent requires a token. It is kept as long as the folder.
set "TOKEN="
if exist "%CONF%\rpc.txt" for /f "usebackq tokens=2" %%a in ("%CONF%\rpc.txt") do set "TOKEN=%%a"
if defined TOKEN goto token_known
"%SERF%" keygen >"%WORK%\said.txt"
for /f "usebackq" %%a in ("%WORK%\said.txt") do set "TOKEN=%%a"
if not defined TOKEN goto no_serf
:token_known
for /f "tokens=1,2" %%a in ("%RPC% %TOKEN%") do >"%CONF%\rpc.txt" echo %%a %%b

rem First the settings of all servers of the role, then those of this server.
if exist "%CONF%\agent.json" del /q "%CONF%\agent.json"
copy /y "%HERE%\%ROLE%.json" "%CONF%\agent.json" >nul
if not exist "%CONF%\agent.json" goto not_administrator
>"%CONF%\node.json" echo {
for /f "delims=" %%a in ("%NODE%") do >>"%CONF%\node.json" echo   "node_name": "%%a",
for /f "delims=" %%a in ("%ADDRESS%") do >>"%CONF%\node.json" echo   "bind": "%%a",
for /f "delims=" %%a in ("%ADDRESS%") do >>"%CONF%\node.json" echo   "advertise": "%%a",
for /f "delims=" %%a in ("%RPC%") do >>"%CONF%\node.json" echo   "rpc_addr": "%%a",
for /f "delims=" %%a in ("%TOKEN%") do >>"%CONF%\node.json" echo   "rpc_auth": "%%a"
>>"%CONF%\node.json" echo }
rem The role is a tag. Serf writes tags to a file, and reads them after a reboot.
if exist "%DATA%\%ROLE%.tags" goto tags_known
for /f "delims=" %%a in ("%ROLE%") do >"%DATA%\%ROLE%.tags" echo {"role": "%%a"}
:tags_known
for /f "delims=" %%a in ("%HOW%") do >"%CONF%\enrolment.txt" echo %%a

set "RC=0"
netsh advfirewall firewall delete rule name="serf (lbagent)" >nul 2>&1
netsh advfirewall firewall add rule name="serf (lbagent)" dir=in action=allow protocol=TCP program="%SERF%" >nul
if not "%ERRORLEVEL%"=="0" set "RC=1"
netsh advfirewall firewall add rule name="serf (lbagent)" dir=in action=allow protocol=UDP program="%SERF%" >nul
if not "%ERRORLEVEL%"=="0" set "RC=1"
if not "%RC%"=="0" echo Firewall: could not add a rule; permit TCP and UDP for serf.exe.

if "%HOW%"=="none" goto enrolled
if "%HOW%"=="winsw" goto by_winsw
if "%HOW%"=="nssm" goto by_nssm
rem XML needs an ampersand in the folder's name as an entity.
set "FOLDER=%HERE:&=&amp;%"
if exist "%CONF%\task.xml" del /q "%CONF%\task.xml"
for /f "usebackq tokens=1,2,3 delims=@" %%a in ("%HERE%\serf-task.xml") do (
    if "%%b"=="" (
        >>"%CONF%\task.xml" echo %%a
    ) else (
        for /f "delims=" %%d in ("%FOLDER%") do >>"%CONF%\task.xml" echo %%a%%d%%c
    )
)
schtasks /create /tn serf /xml "%CONF%\task.xml" /f >nul
if not "%ERRORLEVEL%"=="0" goto not_enrolled
goto enrolled
:by_winsw
rem At a second install the service exists already; it reads serf-service.xml when it starts.
sc query serf >nul 2>&1
if "%ERRORLEVEL%"=="0" goto enrolled
"%HERE%\serf-service.exe" install >nul
if not "%ERRORLEVEL%"=="0" goto not_enrolled
goto enrolled
:by_nssm
call "%HERE%\serf-nssm.bat"
if not "%ERRORLEVEL%"=="0" goto not_enrolled
:enrolled
for /f "delims=" %%a in ("%NODE% (role %ROLE%) on %ADDRESS%, started at boot by: %HOW%") do echo Installed: %%a
echo Run join-cluster.bat next; if the agent runs already, run leave-cluster.bat first.
goto ended

:not_enrolled
rem Serf's own error is above, in the language of the system.
for /f "delims=" %%a in ("%HOW%") do echo The files are written, but the %%a could not be created: run this as administrator.
set "RC=1"
goto ended
:not_administrator
echo The folder cannot be written, or not be closed to other users: run this as administrator.
set "RC=1"
goto ended
:no_serf
echo serf.exe: does not run; use Serf for Windows and for this machine's processor.
set "RC=1"
goto ended
:refused
for /f "delims=" %%a in ("%WRONG%") do echo Nothing was done: %%a.
set "RC=2"
:ended
call "%~dp0common.bat" clean
exit /b %RC%

:usage
echo install.bat ROLE ADDRESS [/name NAME] [/as task, winsw, nssm or none] [/rpc ADDRESS:PORT]
echo.
echo Makes this server a member of the cluster: writes conf and data, opens the firewall, starts the agent at each boot.
echo Run it as administrator, in the folder with these files and serf.exe. Run it again after an edit of ROLE.json.
echo.
echo   ROLE      the role of this server, such as web for web.json
echo   ADDRESS   the address of this server at which load balancers reach it
echo   /name     its name in the cluster; default: the host name
echo   /as       how the agent starts at boot: a scheduled task (default), a service of WinSW or NSSM, or not at all
echo   /rpc      the address for commands to the agent; default: 127.0.0.1:7373
echo.
echo   0  installed
echo   1  a step failed, see above
echo   2  nothing was done: see above, or the arguments are invalid
exit /b 2
