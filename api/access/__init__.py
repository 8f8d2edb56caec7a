"""Who gets in: the gate before every route, the scope that each route declares, what a request may cost, the page where
people sign in, and the bounds of bodies."""
