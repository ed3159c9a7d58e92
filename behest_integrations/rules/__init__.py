"""Values and what they mean: whom a call is for, budgets and their text, units, tokens, errors.

Nothing here keeps state, does I/O or knows a store, a provider or a framework; every other folder
may import this one, and this one imports none of them.
"""
