"""How a plan is carried out. Nothing here decides anything.

An executor takes hidden states, a view of the FFN and the tokens' weights, and returns the update
(Y − H)/r. `select.py` chooses one and remembers why: `execution_choices()` has it for a run's
record.
"""
