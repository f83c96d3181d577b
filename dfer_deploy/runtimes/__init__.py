"""The places where one model can run, behind one small protocol."""
