"""The commands of ``medsr``, one a module; heavy imports happen inside the one that is called."""
