"""The service where containers come and go: what each kind of them does, with what a vendor gives handed in."""
