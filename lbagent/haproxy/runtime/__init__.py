"""HAProxy's runtime API on the stats socket: sessions, capabilities per version, servers, their state."""
