"""The service on Modal: what each kind of container does. Modal's objects are passed in; nothing here imports Modal."""
