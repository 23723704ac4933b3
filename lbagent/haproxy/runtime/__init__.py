"""HAProxy's runtime API on the stats socket: sessions, servers, health."""
