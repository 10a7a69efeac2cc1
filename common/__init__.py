"""What every setting shares, and nothing that only one needs.

torch and transformers make half a million objects that stay, and the search for garbage among them would take a quarter
of the time that a command needs to start. It is therefore made less often: after 10,000 new objects instead of 700.
"""

import gc

gc.set_threshold(10_000, 10, 10)
