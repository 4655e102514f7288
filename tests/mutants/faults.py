"""Faults that someone could put into the code, and the tests that must notice each of them.

``old`` must occur once in the file. Where a change of the code makes a mutant meaningless, put another one in its
place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        name: unique, words joined by underscores.
        file: in ``src/reducr``.
        old: text of the file.
        new: the text with the fault.
        tests: arguments of pytest that select tests which fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


PARTS = "tests/end_to_end/test_parts_of_the_data.py"
STAGES = "tests/end_to_end/test_finished_stages.py"
QUOTAS = "tests/unit/test_quotas.py"
STRATIFIED = "tests/unit/test_stratified.py"
BATCH_SAMPLER = "tests/equivalence/test_batch_sampler.py tests/unit/test_batch_sampler.py"
SELECTORS = "tests/contract/test_selectors.py tests/unit/test_selectors.py tests/unit/test_select_distributed.py"
RULES = (
    "tests/unit/test_group_weights.py tests/equivalence/test_reference.py tests/equivalence/test_baselines.py "
    "tests/equivalence/test_golden.py"
)
SCORES = "tests/unit/test_scores.py tests/unit/test_losses.py tests/properties/test_laws.py"
IRREDUCIBLE = "tests/unit/test_irreducible_objective.py tests/unit/test_cross_fit.py tests/unit/test_ensemble.py"
CORE = (
    "tests/unit/test_downsampler.py tests/unit/test_scorer.py tests/unit/test_scoring.py tests/unit/test_auxiliary.py "
    "tests/equivalence/test_cheaper_scoring.py"
)
DATA = "tests/unit/test_module.py tests/unit/test_noise.py tests/unit/test_imbalance.py tests/unit/test_overlap.py"

# Six faults that no test noticed once.
MUTANTS = [
    Mutant(
        "holdout_loader_reads_the_test_part",
        "pipeline/target_stage.py",
        "            ExampleLoader(holdout, batch_size=config.holdout.batch_size",
        "            ExampleLoader(data.splits.test, batch_size=config.holdout.batch_size",
        PARTS,
    ),
    Mutant(
        "total_seconds_without_the_reference",
        "pipeline/target_stage.py",
        "total_seconds=irreducible_seconds + fit_seconds",
        "total_seconds=fit_seconds",
        f"{STAGES} -k seconds",
    ),
    Mutant(
        "uniform_share_of_the_groups_present",
        "selectors/priority_sampling.py",
        "self.uniform_share / self.num_groups",
        "self.uniform_share / len(candidates.groups.unique())",
        QUOTAS,
    ),
    Mutant(
        "quota_shares_may_be_zero",
        "selectors/priority_sampling.py",
        "shares.clamp(min=SMALLEST_QUOTA)",
        "shares",
        QUOTAS,
    ),
    Mutant(
        "quotas_of_other_rules_may_be_zero",
        "functional/quotas.py",
        "return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())",
        "return quotas",
        QUOTAS,
    ),
    Mutant(
        "validation_overwrites_the_moving_holdout_loss",
        "scoring/tracker.py",
        "        if self.moving_loss is None or self._is_first:",
        "        if True:",
        PARTS,
    ),
    Mutant(
        "last_example_of_a_group_is_taken",
        "data/core/stratified.py",
        "        gaps[available - totals <= 1] -= counts.sum()",
        "        pass",
        STRATIFIED,
    ),
    # Faults of the core, one for each thing that it must do.
    Mutant(
        "payoff_summed_in_float32",
        "functional/scores.py",
        "excess.sum(dim=0, dtype=torch.float64)",
        "excess.sum(dim=0).double()",
        f"{SCORES} {RULES} {SELECTORS}",
    ),
    Mutant(
        "score_summed_in_any_order",
        "functional/scores.py",
        "    return _ordered_sum(excess * group_weights.to(excess.dtype), dim=1)",
        "    return (excess * group_weights.to(excess.dtype)).sum(dim=1)",
        f"{SCORES} {RULES} {SELECTORS}",
    ),
    Mutant(
        "zero_one_loss_of_nan",
        "functional/losses.py",
        "    return is_wrong.masked_fill_(~logits.isfinite().all(dim=1), torch.nan)",
        "    return is_wrong",
        SCORES,
    ),
    Mutant(
        "negative_holdout_error",
        "functional/quotas.py",
        "-torch.expm1(-holdout_loss.clamp(min=0))",
        "-torch.expm1(-holdout_loss)",
        f"{QUOTAS} {RULES} {SCORES}",
    ),
    Mutant(
        "last_resort_above_small_powers",
        "functional/samplers.py",
        "2 * logarithms.masked_fill(~positive, 0).amin() - _LAST_RESORT",
        "-_LAST_RESORT * torch.ones_like(logarithms[0])",
        f"tests/unit/test_samplers.py {SCORES} {SELECTORS}",
    ),
    Mutant(
        "ties_go_to_the_last_position",
        "functional/samplers.py",
        "    return torch.sort(scores, descending=True, stable=True).indices[:num_selected]",
        "    return len(scores) - 1 - torch.sort(scores.flip(0), descending=True, stable=True).indices[:num_selected]",
        f"tests/unit/test_samplers.py {SCORES} {SELECTORS}",
    ),
    Mutant(
        "own_group_bonus_at_the_target",
        "functional/losses.py",
        "    return loss.scatter_add_(1, own_group.unsqueeze(1)",
        "    return loss.scatter_add_(1, targets.unsqueeze(1)",
        SCORES,
    ),
    Mutant(
        "payoff_decays_after_it_is_added",
        "selectors/group_weights.py",
        "            self.cumulative_payoff.mul_(self.payoff_decay)\n        self.cumulative_payoff.add_(payoff)",
        "            payoff = payoff * self.payoff_decay\n            self.cumulative_payoff.mul_(self.payoff_decay)\n"
        "        self.cumulative_payoff.add_(payoff)",
        f"{SELECTORS} {RULES}",
    ),
    Mutant(
        "holdout_loss_once_too_often_in_merged_payoffs",
        "selectors/reducr.py",
        "payoff += (len(payoffs) - 1) * self.group_holdout_loss",
        "payoff += len(payoffs) * self.group_holdout_loss",
        SELECTORS,
    ),
    Mutant(
        "merged_positions_count_the_selected",
        "selectors/base.py",
        "starts.append(starts[-1] + len(selection.scores))",
        "starts.append(starts[-1] + len(selection.positions))",
        SELECTORS,
    ),
    Mutant(
        "merged_loss_weight_is_a_sum",
        "selectors/base.py",
        "sum(part.loss_weight for part in selections) / len(selections)",
        "sum(part.loss_weight for part in selections)",
        f"{SELECTORS} tests/unit/test_downsampler.py",
    ),
    Mutant(
        "finite_if_any_group_loss_is",
        "selectors/base.py",
        "has_finite_loss if loss.ndim == 1 else has_finite_loss.all(dim=1)",
        "has_finite_loss if loss.ndim == 1 else has_finite_loss.any(dim=1)",
        SELECTORS,
    ),
    Mutant(
        "group_dro_weights_lag_one_step",
        "selectors/weighted.py",
        "q = group_weights(self.cumulative_payoff + payoff, step",
        "q = group_weights(self.cumulative_payoff, step",
        f"{RULES} {SELECTORS}",
    ),
    Mutant(
        "infobatch_keeps_its_weight_when_filled_up",
        "selectors/weighted.py",
        "        weight = torch.where(has_pruned, is_low.sum() / is_selected_low.sum(), weight)\n",
        "",
        f"{RULES} {SELECTORS}",
    ),
    Mutant(
        "rs2_counts_of_the_last_known_index",
        "selectors/rs2.py",
        "torch.where(index < size, num_times, 0)",
        "torch.where(index <= size, num_times, 0)",
        f"{RULES} {SELECTORS}",
    ),
    Mutant(
        "uniform_phase_ends_one_epoch_late",
        "selectors/samplers.py",
        "epoch < self.uniform_until or epoch >= self.uniform_from",
        "epoch < self.uniform_until or epoch > self.uniform_from",
        f"tests/unit/test_samplers.py {SELECTORS}",
    ),
    Mutant(
        "temperature_reaches_its_end_one_epoch_late",
        "selectors/samplers.py",
        "min(epoch / (self.num_epochs - 1), 1.0)",
        "min(epoch / self.num_epochs, 1.0)",
        f"tests/unit/test_samplers.py {SELECTORS}",
    ),
    Mutant(
        "cross_fit_reads_the_model_that_has_seen_the_example",
        "irreducible/cross_fit.py",
        "zip((self.second, self.first), positions_by_half",
        "zip((self.first, self.second), positions_by_half",
        IRREDUCIBLE,
    ),
    Mutant(
        "points_normalisation_by_weights",
        "irreducible/objective.py",
        'normaliser = weights.sum(dim=0) if self.weight_normalisation == "weights" else len(loss)',
        "normaliser = weights.sum(dim=0)",
        IRREDUCIBLE,
    ),
    Mutant(
        "member_shares_memory_with_the_ensemble",
        "irreducible/ensemble.py",
        "tensor.detach()[c].clone()",
        "tensor.detach()[c]",
        IRREDUCIBLE,
    ),
    Mutant(
        "fingerprint_without_the_last_inputs",
        "irreducible/fingerprint.py",
        "torch.linspace(0, len(data) - 1, num_sampled",
        "torch.linspace(0, len(data) // 2, num_sampled",
        "tests/unit/test_irreducible_fingerprint.py tests/unit/test_irreducible_store.py",
    ),
    Mutant(
        "table_keeps_rows_that_came_twice",
        "irreducible/build.py",
        "torch.nonzero(times_seen != 1)",
        "torch.nonzero(times_seen < 1)",
        "tests/unit/test_irreducible_build.py",
    ),
    Mutant(
        "published_label_noise_in_the_holdout_part",
        "data/core/parts.py",
        "raw.noisy_target[source] if is_train and raw.noisy_target",
        "raw.noisy_target[source] if raw.noisy_target",
        DATA,
    ),
    Mutant(
        "published_corruption_forgotten_under_more_noise",
        "data/core/parts.py",
        "        is_corrupted = target != clean if raw.has_clean_targets else is_changed",
        "        is_corrupted = is_changed",
        DATA,
    ),
    Mutant(
        "parts_share_a_stream_of_noise",
        "data/core/parts.py",
        'mixed_seed(seed, number) for number, part in enumerate(PARTS)} | {"train": seed}',
        'mixed_seed(seed, 0) for number, part in enumerate(PARTS)} | {"train": seed}',
        DATA,
    ),
    Mutant(
        "probability_over_empty_classes",
        "data/core/imbalance.py",
        "strict=True) if count), default=0.0)",
        "strict=True)), default=0.0)",
        DATA,
    ),
    Mutant(
        "duplicates_stay_in_both_parts",
        "data/core/overlap.py",
        "    is_drawn[: len(drawn)] = ~is_shared",
        "    is_drawn[: len(drawn)] = True",
        DATA,
    ),
    Mutant(
        "finished_methods_of_other_seeds_are_skipped",
        "pipeline/run.py",
        "{row.method for row in rows if row.seed == seed}",
        "{row.method for row in rows}",
        "tests/end_to_end/test_resume.py -k phases",
    ),
    Mutant(
        "warm_start_costs_nothing",
        "pipeline/target_stage.py",
        "            irreducible_seconds += trained.seconds",
        "            pass",
        "tests/end_to_end/test_beside_selection.py",
    ),
    Mutant(
        "seconds_of_a_column_alone",
        "pipeline/finished_stages.py",
        "sum(seconds for _, seconds in tables.values())",
        "max(seconds for _, seconds in tables.values())",
        f"{STAGES} -k seconds",
    ),
    Mutant(
        "stage_of_other_settings_is_used",
        "pipeline/finished_stages.py",
        "if made_with[option] != value), None)",
        "if made_with[option] != value and False), None)",
        STAGES,
    ),
    Mutant(
        "two_processes_in_one_run_folder",
        "_internal/run_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/unit/test_run_folder.py",
    ),
    # Faults of the selection core and of what surrounds it.
    Mutant(
        "inputs_of_nonfinite_examples_are_kept",
        "scoring/rows.py",
        "    return zero_inputs(selected) if selection.has_nonfinite_loss else selected",
        "    return selected",
        "tests/distributed/test_several_ranks.py -k nan_inputs",
    ),
    Mutant(
        "auxiliary_models_learn_twice",
        "downsampler.py",
        "if self.auxiliary.models and not self._is_learned and",
        "if self.auxiliary.models and",
        CORE,
    ),
    Mutant(
        "extra_batches_begin_anew_after_a_resume",
        "auxiliary.py",
        "            self.batches.stream.seek(num_batches)",
        "            self.batches.stream.seek(0)",
        f"{CORE} tests/equivalence/test_lightning_resume.py tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "only_the_last_micro_batch_updates",
        "downsampler.py",
        "self.selector.update(self.selector.merged(self.log.waiting))",
        "self.selector.update(self.log.waiting[-1])",
        f"{CORE} tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "micro_batches_are_forgotten_in_the_state",
        "batch/report.py",
        '"waiting": [asdict(selection) for selection in self.waiting]',
        '"waiting": []',
        f"{CORE} tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "dummies_count_as_selected",
        "batch/report.py",
        "groups[:0] if selection.is_dummy else groups",
        "groups",
        "tests/distributed/test_several_ranks.py -k report",
    ),
    Mutant(
        "a_discarded_selection_updates",
        "downsampler.py",
        "        self.log.take_back()\n",
        "",
        f"{CORE} tests/unit/test_hugging_face.py tests/equivalence/test_lightning_callback.py",
    ),
    Mutant(
        "old_examples_in_the_order_of_their_positions",
        "scoring/budget.py",
        "        age = self.step - scored_step + chance",
        "        age = (self.step - scored_step).double()",
        CORE,
    ),
    Mutant(
        "unscored_examples_count_with_no_loss",
        "scoring/budget.py",
        "torch.where(scored_step < 0, self.high_loss, self.loss",
        "torch.where(scored_step < 0, 0.0, self.loss",
        CORE,
    ),
    Mutant(
        "budget_remembers_the_first_examples",
        "scoring/choose.py",
        "budget.remember(part.index, model_loss)",
        "budget.remember(batch.index[: len(model_loss)], model_loss)",
        CORE,
    ),
    Mutant(
        "modes_are_not_restored",
        "scoring/modes.py",
        "                module.training = is_training",
        "                pass",
        CORE,
    ),
    Mutant(
        "statistics_are_not_restored",
        "scoring/modes.py",
        "                    buffer.copy_(before)",
        "                    pass",
        CORE,
    ),
    Mutant(
        "holdout_loss_in_train_mode",
        "scoring/tracker.py",
        'scoring_pass(model, "eval")',
        'scoring_pass(model, "train")',
        f"{CORE} tests/unit/test_holdout.py tests/equivalence/test_loop_and_lightning.py",
    ),
    Mutant(
        "moving_holdout_loss_starts_with_the_weight_of_a_pass",
        "scoring/tracker.py",
        "            self.moving_loss.rescale(len(first.target), sync=self.sync)",
        "            pass",
        f"{CORE} tests/unit/test_holdout.py tests/equivalence/test_loop_and_lightning.py {PARTS}",
    ),
    Mutant(
        "moving_holdout_loss_starts_anew_after_a_resume",
        "scoring/tracker.py",
        "            self._stream.seek(num_steps)",
        "            self._stream.seek(0)",
        f"{CORE} tests/equivalence/test_lightning_resume.py",
    ),
    Mutant(
        "refresh_one_step_late",
        "scoring/holdout.py",
        "return num_steps % int(every) == 0",
        "return num_steps % int(every) == 1 % int(every)",
        f"{CORE} tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "last_batch_of_an_epoch_is_not_refreshed",
        "training/loader.py",
        "            self._step()\n        self.downsampler.step(self.model, is_last=True)",
        "            self._step()\n        self.downsampler.step(self.model)",
        f"{CORE} tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "selector_does_not_know_the_epoch",
        "training/loader.py",
        "                self.downsampler.selector.set_epoch(epoch)",
        "                pass",
        f"{CORE} tests/equivalence/test_selective_loader.py",
    ),
    Mutant(
        "loss_of_ranks_without_its_weight",
        "lightning/target.py",
        "return loss * self.downsampler.loss_weight",
        "return loss",
        "tests/distributed/test_program.py",
    ),
    Mutant(
        "ranks_share_the_holdout_sums_of_rank_0",
        "lightning/target.py",
        "[name for name, _ in tensors if name.startswith(own_state)]",
        "[]",
        "tests/distributed/test_program.py",
    ),
    Mutant(
        "best_checkpoints_swapped",
        "lightning/fit.py",
        '            "holdout/worst_group_accuracy": folder / "best_worst_group.ckpt",\n'
        '            "holdout/mean_accuracy": folder / "best_mean.ckpt",',
        '            "holdout/mean_accuracy": folder / "best_worst_group.ckpt",\n'
        '            "holdout/worst_group_accuracy": folder / "best_mean.ckpt",',
        "tests/equivalence/test_lightning_resume.py -k best",
    ),
    Mutant(
        "reference_keeps_the_highest_loss",
        "lightning/fit.py",
        '        monitor="irreducible/loss_on_training_part",\n',
        '        monitor="irreducible/loss_on_training_part",\n        mode="max",\n',
        "tests/equivalence/test_lightning_resume.py -k lowest",
    ),
    Mutant(
        "learning_references_at_full_rate",
        "pipeline/target_stage.py",
        '        group["lr"] *= rate',
        "        pass",
        "tests/end_to_end/test_beside_selection.py -k rate -m ''",
    ),
    Mutant(
        "holdout_draws_are_not_augmented",
        "pipeline/target_stage.py",
        "return batch if data.augment is None else batch._replace",
        "return batch if True else batch._replace",
        "tests/end_to_end/test_beside_selection.py -k augmented",
    ),
    Mutant(
        "random_states_are_not_resumed",
        "lightning/target.py",
        "            set_random_state(self._random_state)",
        "            pass",
        "tests/equivalence/test_lightning_resume.py",
    ),
    # Faults of the quotas and of the batch sampler.
    Mutant(
        "groups_rounded_up_in_their_order",
        "functional/quotas.py",
        "    order = np.argsort(uniform[:-1])",
        "    uniform = np.append(uniform[:-1], 0.5)\n    order = np.argsort(uniform[:-1])",
        QUOTAS,
    ),
    Mutant(
        "batches_drawn_ahead_count_as_trained_on",
        "training/reader.py",
        "                reader.num_ahead = workers._num_workers * workers._prefetch_factor",
        "                reader.num_ahead = 0 * workers._num_workers",
        BATCH_SAMPLER,
    ),
    Mutant(
        "a_resumed_pass_draws_the_seed_of_its_loader_again",
        "training/sampler.py",
        "            set_random_state(self._random_state)",
        "            pass",
        BATCH_SAMPLER,
    ),
    Mutant(
        "a_pass_ends_twice",
        "training/sampler.py",
        "            drawn.has_ended = True",
        "            pass",
        BATCH_SAMPLER,
    ),
    Mutant(
        "epochs_that_accelerate_counts_are_obeyed",
        "training/sampler.py",
        "        if epoch != self.epoch and not is_told_by_accelerate(sys._getframe(1)):",
        "        if epoch != self.epoch:",
        BATCH_SAMPLER,
    ),
    Mutant(
        "a_refresh_draws_global_random_numbers",
        "training/sampler.py",
        "        self.downsampler.holdout.keeps_random_state = True",
        "        pass",
        BATCH_SAMPLER,
    ),
    Mutant(
        "holdout_examples_of_a_batch_begin_anew_after_a_resume",
        "training/sampler.py",
        '        self._share.num_drawn = state.get("num_drawn", 0)',
        "        self._share.num_drawn = 0",
        BATCH_SAMPLER,
    ),
    Mutant(
        "a_loader_over_the_training_data_alone_is_not_noticed",
        "training/sampler.py",
        "        self._share.check_reader(reader.dataset)",
        "        pass",
        BATCH_SAMPLER,
    ),
    Mutant(
        "the_part_of_a_group_is_its_beginning",
        "scoring/holdout_groups.py",
        '    return torch.div(ranks * share, sizes, rounding_mode="floor") != torch.div(',
        "    return (ranks < share) if True else torch.div(",
        "tests/unit/test_holdout_part.py",
    ),
    Mutant(
        "early_refreshes_are_left_out",
        "scoring/holdout.py",
        "return is_early or num_steps % DEFAULT_REFRESH_STEPS == 0",
        "return num_steps % DEFAULT_REFRESH_STEPS == 0",
        "tests/unit/test_holdout_part.py",
    ),
    Mutant(
        "a_look_at_a_batch_counts",
        "training/loader.py",
        "or not self._trace.is_of(self.model):\n            return False",
        "or self._trace.is_of(self.model):\n            return False",
        "tests/unit/test_silent_mistakes.py",
    ),
    Mutant(
        "a_list_is_decided_by_its_looks",
        "batch/nested.py",
        "        return self._is_container[place]\n",
        "        return looks_like\n",
        "tests/unit/test_silent_mistakes.py",
    ),
    Mutant(
        "short_batches_are_kept",
        "scoring/short_batches.py",
        '        counts["num_skipped"] += 1\n        return True',
        '        counts["num_skipped"] += 1\n        return False',
        "tests/unit/test_short_batches.py",
    ),
    Mutant(
        "holdout_draws_begin_anew_after_a_resume",
        "auxiliary.py",
        '            self.draws.seek(state["num_drawn"])',
        "            pass",
        "tests/unit/test_holdout_draws.py",
    ),
    Mutant(
        "a_filter_drops_what_is_believed_most",
        "training/filters.py",
        "belief[members].argsort(stable=True)[:num_dropped]",
        "belief[members].argsort(stable=True, descending=True)[:num_dropped]",
        "tests/unit/test_belief.py",
    ),
    Mutant(
        "every_filter_gains",
        "training/belief.py",
        "best if gain > error else",
        "best if gain > -error else",
        "tests/unit/test_belief.py",
    ),
    Mutant(
        "the_probe_counts_examples_not_groups",
        "training/probe.py",
        "shares = 1 / (counts[part.groups] * (counts > 0).sum())",
        "shares = torch.full_like(counts[part.groups], 1 / len(part.groups))",
        "tests/unit/test_belief.py",
    ),
]
