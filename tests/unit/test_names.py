import pytest

from reducr._internal.names import check_options, unknown_name


def test_unknown_name_says_the_nearest_first_and_all_that_exist():
    assert str(unknown_name("selector", "rho_los", ["uniform", "rho_loss", "entropy"])) == (
        "unknown selector 'rho_los'. Did you mean 'rho_loss'? There are: entropy, rho_loss, uniform."
    )


def test_unknown_name_guesses_nothing_far_away():
    assert str(unknown_name("sampler", "xyz", ["top_k"])) == "unknown sampler 'xyz'. There are: top_k."


def test_unknown_name_with_nothing_to_choose_from():
    assert str(unknown_name("option", "x", [])) == "unknown option 'x'. There are: none."


def test_unknown_name_of_something_that_is_not_a_string():
    assert str(unknown_name("sampler", 3, ["top_k"])) == "unknown sampler 3. There are: top_k."


def build(first, *, temperature=1.0, beta=2.0):
    return first, temperature, beta


def test_check_options_knows_keyword_only_parameters_and_the_extra_names():
    with pytest.raises(ValueError, match=r"unknown option 'epoch' of build\. Did you mean 'num_epochs'"):
        check_options("build", build, {"beta": 1.0, "num_epochs": 3, "epoch": 2}, also=["num_epochs"])
    with pytest.raises(ValueError, match=r"unknown option 'first' of build.*There are: beta, temperature\."):
        check_options("build", build, {"first": 1})
    assert check_options("build", build, {"beta": 1.0, "num_epochs": 3}, also=["num_epochs"]) is None
