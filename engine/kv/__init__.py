"""Where keys and values of running sequences lie: the bookkeeping (`slots`, without torch) and the tensors (`grid`)."""
