@echo off
rem Shared parts of the scripts in this folder. A script calls a part by its name, inside its own setlocal,
rem and reads its results from variables; RC is the status.
rem
rem Quotes are removed from all input (arguments, Serf, load balancers) before it is used. A variable
rem in quotes is then safe with any special character, and delayed expansion stays off.
if "%~1"=="" (
    echo common.bat is called by the scripts beside it and does nothing alone.
    exit /b 2
)
goto %~1

:settings
rem Sets HERE CONF DATA SERF LB_ROLE WORK, and the environment with which serf.exe reaches the agent.
set "RC=0"
set "ERRORLEVEL="
set "RANDOM="
set "HERE=%~dp0"
set "HERE=%HERE:~0,-1%"
set "CONF=%HERE%\conf"
set "DATA=%HERE%\data"
set "SERF=%HERE%\serf.exe"
if not exist "%SERF%" set "SERF=serf.exe"
set "LB_ROLE=lb"
if defined LBAGENT_LB_ROLE set "LB_ROLE=%LBAGENT_LB_ROLE:"=%"
if not exist "%CONF%\rpc.txt" goto settings_folder
for /f "usebackq tokens=1,2" %%a in ("%CONF%\rpc.txt") do (
    if not defined SERF_RPC_ADDR set "SERF_RPC_ADDR=%%a"
    if not defined SERF_RPC_AUTH set "SERF_RPC_AUTH=%%b"
)
:settings_folder
rem A folder that only this run has created: two runs that start together have the same RANDOM.
if not defined TEMP set "TEMP=%HERE%"
set "COUNT=0"
:settings_try
set /a COUNT+=1
set "WORK=%TEMP%\lbagent-%RANDOM%-%COUNT%"
if "%COUNT%"=="50" goto settings_failed
rem Wine's md keeps the status of the previous command if it succeeds.
call :zero
md "%WORK%" 2>nul
if not "%ERRORLEVEL%"=="0" goto settings_try
exit /b 0
:zero
exit /b 0
:settings_failed
set "RC=2"
set "WORK="
echo TEMP: cannot create a folder, nothing was done; check its free space and permissions.
exit /b 0

:clean
rem The last call of a script.
if not defined WORK exit /b 0
if exist "%WORK%\said.txt" del /q "%WORK%\said.txt"
if exist "%WORK%\now.js" del /q "%WORK%\now.js"
rd "%WORK%" 2>nul
exit /b 0

:sleep
rem Waits for a number of seconds. timeout.exe needs a console, which services and tasks lack.
set "PINGS=%~1"
if "%~1"=="sleep" set "PINGS=%~2"
set /a PINGS+=1
ping -n "%PINGS%" 127.0.0.1 >nul
exit /b 0

:until
rem Sets UNTIL: a number of minutes from now, in seconds since 1970. It stays unset if Windows does not report the time.
rem Date and time differ by the language of Windows; JScript has the same time in all of them, in UTC.
set "UNTIL="
set "NOW="
set "ODD="
>"%WORK%\now.js" echo WScript.Echo(Math.floor(new Date().getTime() / 1000));
for /f "usebackq tokens=1" %%a in (`cscript //nologo //E:JScript "%WORK%\now.js" 2^>nul`) do set "NOW=%%a"
if not defined NOW exit /b 0
set "NOW=%NOW:"=%"
for /f "delims=0123456789" %%a in ("0%NOW%") do set "ODD=1"
if defined ODD exit /b 0
rem set /a has 32 bits, which end in 2038.
if not "%NOW:~0,1%"=="1" if not "%NOW:~0,1%"=="2" exit /b 0
if not "%NOW:~0,10%"=="%NOW%" exit /b 0
set /a UNTIL=NOW+MINUTES*60
if %UNTIL% LSS 0 set "UNTIL="
exit /b 0

:answers
rem RC is 0 if the agent answers, 3 if it requires authentication, else 2; said.txt has its output.
set "LOOKS=0"
:answers_again
set /a LOOKS+=1
set "RC=0"
set "WORDS="
"%SERF%" info >"%WORK%\said.txt" 2>&1
if "%ERRORLEVEL%"=="0" exit /b 0
set "RC=2"
for /f "usebackq delims=" %%a in ("%WORK%\said.txt") do set "WORDS=%%a"
if not defined WORDS goto answers_unclear
set "WORDS=%WORDS:"=%"
rem The agent runs and refuses access.
if not "%WORDS%"=="%WORDS:uthentication=%" set "RC=3"
if "%RC%"=="3" exit /b 0
rem No agent listens. Windows has a message in its own language, Serf prints `dial tcp`.
if not "%WORDS%"=="%WORDS:dial tcp=%" exit /b 0
:answers_unclear
rem serf.exe did not start, or failed for another reason: one such failure is not conclusive.
if "%LOOKS%"=="3" exit /b 0
call :sleep 1
goto answers_again

:self
rem Sets NAME ROLE TAGGED from the running agent. RC is 2, with a message, if it cannot be used.
set "NAME="
set "ROLE="
set "TAGGED="
set "ODD="
call :answers
if not "%RC%"=="0" goto self_down
rem The agent's own name comes first; a tag may be called `name`, too.
for /f "usebackq tokens=1,2,*" %%a in ("%WORK%\said.txt") do (
    if "%%a %%b"=="role =" set "ROLE=%%c"
    if "%%a %%b"=="lbagent =" set "TAGGED=%%c"
    if "%%a %%b"=="name =" if not defined NAME set "NAME=%%c"
)
if defined ROLE set "ROLE=%ROLE:"=%"
if defined TAGGED set "TAGGED=%TAGGED:"=%"
rem A name with a quote is as invalid as one with a question mark.
if defined NAME set "NAME=%NAME:"=?%"
for /f "delims=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-" %%x in ("x%NAME%") do set "ODD=1"
if not defined NAME goto self_invalid
if defined ODD goto self_invalid
set "FIRST=%NAME:~0,1%"
if "%FIRST%"=="." goto self_invalid
if "%FIRST%"=="-" goto self_invalid
if "%FIRST%"=="_" goto self_invalid
if not "%NAME:~0,63%"=="%NAME%" goto self_invalid
exit /b 0
:self_invalid
set "RC=2"
echo The node's name is invalid, nothing was done:
for /f "usebackq tokens=1,2,*" %%a in ("%WORK%\said.txt") do if "%%a %%b"=="name =" echo   %%c
echo Use at most 63 letters, digits, dots, - and _, with a letter or digit first; see install.bat, /name.
exit /b 0
:self_down
echo The Serf agent does not answer, nothing was done:
for /f "usebackq delims=" %%a in ("%WORK%\said.txt") do echo   %%a
if "%RC%"=="3" echo Run this as administrator: the agent's token is in conf\rpc.txt.
if "%RC%"=="2" echo Start it with join-cluster.bat.
set "RC=2"
exit /b 0

:tags
rem Two arguments for `serf tags` follow, such as -set "lbagent=paused". RC is 1, with a message, if it fails.
set "RC=0"
"%SERF%" tags "%~2" "%~3" >"%WORK%\said.txt" 2>&1
if "%ERRORLEVEL%"=="0" exit /b 0
set "RC=1"
echo The tag could not be changed:
for /f "usebackq delims=" %%a in ("%WORK%\said.txt") do echo   %%a
exit /b 0

:ask
rem Asks every load balancer to VERB with PAYLOAD. Sets RC (0: all confirmed), SESSIONS, and LBS_NAME for `show`.
rem LBS_NAME is `asked`, `failed`, or `answered: ` and the answer.
call :lbs_clear
"%SERF%" members -tag "role=%LB_ROLE%" >"%WORK%\said.txt" 2>&1
for /f "usebackq tokens=1,2,3" %%a in ("%WORK%\said.txt") do (
    if "%%c"=="alive" set "LBS_%%a=asked"
    if "%%c"=="failed" set "LBS_%%a=failed"
)
set "TRIES=0"
:ask_again
rem Serf gossips queries, so some do not reach every node. A second query for the same pause has no effect.
set /a TRIES+=1
set /a PATIENCE=TRIES*2
set /a ELAPSED+=PATIENCE
"%SERF%" query -relay-factor 2 -tag "role=%LB_ROLE%" -timeout "%PATIENCE%s" "%VERB%" "%PAYLOAD%" >"%WORK%\said.txt" 2>&1
for /f "usebackq tokens=1,2,* delims='" %%a in ("%WORK%\said.txt") do (
    if "%%a"=="Response from " set "LBS_%%b=answered%%c"
)
call :lbs_count
if defined WAITING if not "%TRIES%"=="4" goto ask_again
set "RC=1"
if not "%YES%"=="0" if "%NO%"=="0" set "RC=0"
exit /b 0

:show
rem A line for each load balancer.
set "SHOW=1"
call :lbs_count
set "SHOW="
if not "%YES%%NO%"=="00" exit /b 0
for /f "delims=" %%a in ("No load balancer (role %LB_ROLE%) is alive in Serf.") do echo %%a
exit /b 0

:lbs_clear
set "LBS_=-"
for /f "tokens=1 delims==" %%a in ('set LBS_') do set "%%a="
rem One variable is always set, so that `set LBS_` succeeds.
set "LBS_=-"
exit /b 0

:lbs_count
rem Sets YES NO (numbers of load balancers that confirmed and did not), SESSIONS, WAITING (whether a retry may help).
set "YES=0"
set "NO=0"
set "SESSIONS=0"
set "WAITING="
for /f "tokens=1,* delims==" %%a in ('set LBS_') do (
    set "LB=%%a"
    set "WORDS=%%b"
    call :lbs_one
)
exit /b 0

:lbs_one
set "LB=%LB:"=%"
set "WORDS=%WORDS:"=%"
set "LB=%LB:~4%"
if not defined LB exit /b 0
set "SAID="
if "%WORDS:~0,10%"=="answered: " set "SAID=%WORDS:~10%"
if "%WORDS%"=="failed" set "SAID=not asked: failed in Serf"
if "%WORDS%"=="asked" set "SAID=not answered"
if defined SHOW for /f "delims=" %%a in ("  %LB%  %SAID%") do echo %%a
if "%WORDS%"=="failed" exit /b 0
if "%WORDS%"=="asked" goto lbs_silent
set "FIRST="
set "OPEN=0"
rem `done, 3 sessions still open`
for /f "tokens=1,2 delims=, " %%a in ("%SAID%") do (
    set "FIRST=%%a"
    set "OPEN=%%b"
)
rem `done, no other server of iis serves` has no session.
if "%OPEN%"=="no" set "OPEN=0"
rem The hyphens: Wine takes "not" of `not applied yet` for the keyword.
if not "-%FIRST%"=="-done" goto lbs_not_done
set /a YES+=1
set /a SESSIONS+=OPEN
exit /b 0
:lbs_silent
set /a NO+=1
set "WAITING=1"
exit /b 0
:lbs_not_done
set /a NO+=1
rem It is busy, does not know the node, or has not received the change of the tag: a retry may succeed.
for %%a in (queued unknown still) do if "-%FIRST%"=="-%%a" set "WAITING=1"
exit /b 0
