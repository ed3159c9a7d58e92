"""What tokens cost: the price list compiled into exact integers, and whose prices they are."""
