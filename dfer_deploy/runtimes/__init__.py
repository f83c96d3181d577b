"""The runtimes of a model, behind one small protocol."""
