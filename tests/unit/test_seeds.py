from reducr._internal.seeds import mixed_seed


def test_every_word_changes_the_seed_within_32_bits():
    seeds = [mixed_seed(*words) for words in ((0, 0), (0, 1), (1, 0), (1, 1), (2**40, 1), (2**40, 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert mixed_seed(3, 4) == mixed_seed(3, 4)
