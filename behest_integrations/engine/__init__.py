"""The one path down: plan → reserve → settle or release.

What a call may come to, whether it may go ahead, and how it is ended. It knows the store, prices
and the wire beneath it, and no framework, no door and no meter above it.
"""
