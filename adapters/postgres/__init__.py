"""The ports that must survive, on PostgreSQL 18: two walls of tenancy, short fenced transactions, no other truth."""
