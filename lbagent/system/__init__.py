"""The operating system: processes, sockets, child processes, files of other users, logging."""
