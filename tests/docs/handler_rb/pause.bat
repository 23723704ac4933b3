@echo off
rem Before the patches: pause.bat NAME ADDRESS ROLE
serf event -coalesce=false pause "%1 %2 %3"
