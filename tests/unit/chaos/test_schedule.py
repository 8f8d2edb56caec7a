from tests.chaos.schedule import Hit, Kind, Strike, never_hit, plan


def test_a_seed_gives_the_same_strikes_every_time_and_another_seed_others() -> None:
    assert plan(7, 50) == plan(7, 50)
    assert plan(7, 50) != plan(8, 50)


def test_every_kind_is_killed_and_a_batch_worker_paused_however_few_the_kills() -> None:
    for seed in range(20):
        strikes = plan(seed, 1)
        assert {strike.kind for strike in strikes if not strike.is_pause} == set(Kind)
        assert any(strike.is_pause and strike.kind is Kind.BATCH for strike in strikes)


def test_there_are_as_many_kills_as_asked_for_and_a_pause_for_every_four() -> None:
    strikes = plan(3, 50)
    assert sum(not strike.is_pause for strike in strikes) == 50
    assert sum(strike.is_pause for strike in strikes) == 12


def test_what_was_hit_before_the_first_row_or_after_the_last_does_not_count() -> None:
    # Given every kind killed in time, and one pause, but the API too late
    hits = [Hit(Strike(kind, False, 0), 15.0) for kind in Kind if kind is not Kind.API]
    hits += [Hit(Strike(Kind.BATCH, True, 0), 15.0), Hit(Strike(Kind.API, False, 0), 20.0)]
    # Then
    assert never_hit(hits, 10.0, 20.0) == ["API"]
    assert never_hit(hits, 10.0, 21.0) == []
    assert "a pause" in never_hit(hits[:-2], 10.0, 21.0)
    assert never_hit(hits, 16.0, 16.5)[-1] == "a pause"
