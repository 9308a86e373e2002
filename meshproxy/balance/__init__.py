"""How one of several endpoints is picked: a module a policy, pure, with clock and randomness as arguments."""
