"""Bad inputs by area: name -> (what provokes it, the error's type, a pattern of argument or path, value and fix)."""
