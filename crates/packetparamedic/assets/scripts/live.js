// The progress of a running test, as the service reports it.
