"""The cold part of the API: one file per MPI object, on top of the classes in bindings/."""
