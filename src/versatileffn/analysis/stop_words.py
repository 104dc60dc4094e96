"""English words that say how a sentence is built rather than what it is about."""

_LIST = """
a an the this that these those
i me my mine myself we us our ours ourselves you your yours yourself yourselves
he him his himself she her hers herself it its itself they them their theirs themselves
who whom whose which what one
and or but nor so yet if then than because as while until though although whether
of at by for with about against between into through during before after above below to from
up down in out on off over under again further upon within without
is am are was were be been being do does did doing have has had having
will would shall should can could may might must
not no nor only own same too very just also there here when where why how
all any both each few more most other some such
don't didn't doesn't isn't aren't wasn't weren't won't wouldn't can't couldn't it's i'm
"""
STOP_WORDS = frozenset(_LIST.split())
