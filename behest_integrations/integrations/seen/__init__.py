"""What no door has metered: calls of models through HTTP libraries, seen as they are sent.

They are warned of once, by host and place, or refused. Nothing of theirs is read but the address, and
nothing is booked. What a door has looked at is that door's own, and is passed over here.
"""

from .libraries import watched
from .watch import Sighting, sightings

__all__ = ["Sighting", "sightings", "watched"]
