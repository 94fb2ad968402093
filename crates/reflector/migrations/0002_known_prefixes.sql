-- From where each peer authenticated within the last weeks: an IPv4 address, or the first address of an IPv6 /64.
CREATE TABLE known_prefixes (
    peer         BLOB NOT NULL,
    prefix       TEXT NOT NULL,
    seen_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (peer, prefix)
) STRICT;
