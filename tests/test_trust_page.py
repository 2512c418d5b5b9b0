"""The sentences of docs/trust.md: each has a test."""

# ruff: noqa: E501

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "trust.md"
PROOFS = {
    "Code that you type (in a command, a program, a recipe that you name, a study's file) runs: `package.module:factory` is imported and called, and so are `package.module:name` of `method`, `package.module:transform` of `augment` and `package.module:function` of `target`.": [
        "test_own_method.py::test_every_door_leads_to_the_same_student",
        "test_own_target.py::test_by_name_and_given_in_python_it_is_one_run",
        "test_augment.py::test_runs_are_the_same_each_time_and_known_by_the_transform",
        "test_trust.py::test_a_run_knows_what_its_recipe_names",
        "test_trust.py::test_a_study_trusts_what_its_file_names",
    ],
    "Of what a model's folder names, only `zoo:`, `timm:`, `smp:` and `transformers:` build networks; all else is refused before anything is imported, and the refusal shows the call.": [
        "test_trust.py::test_a_folder_runs_nothing_that_it_names"
    ],
    "`--trust` (`trust=True`) lets the folders of that command run the Python that they name.": [
        "test_trust.py::test_code_that_a_folder_names_runs_with_trust_alone"
    ],
    "In a Python program a folder may also name a network class of a module that the program has imported, with numbers alone: text could tell a class to load other code.": [
        "test_trust.py::test_a_class_that_the_program_has_imported_needs_no_trust"
    ],
    "Where a folder tells a network part by part, torch's layers and functions need no trust, classes of others what they need above, and calls or objects among their settings always.": [
        "test_models_saving.py::test_parts_that_run_other_code_need_trust",
        "test_models_load.py::test_layers_alone_load_by_what_they_are",
    ],
    "Naming a folder, or working in it, makes the `protege` command import nothing that lies in it (`python -m protege` begins as Python does, with the folder one works in).": [
        "test_trust.py::test_what_lies_in_a_folder_is_never_imported_because_it_is_named"
    ],
    "A network given with `network=` takes weights from the folder and no code.": [
        "test_trust.py::test_a_network_that_is_given_takes_nothing_of_what_the_folder_names"
    ],
    "A folder fetches no weights from elsewhere.": ["test_trust.py::test_a_folder_fetches_no_weights"],
    "`transformers:` models run no code that comes with them, and no prompt asks for leave to.": [
        "test_trust.py::test_transformers_runs_nothing_that_comes_with_a_model"
    ],
    "A name that is no factory imports nothing, and an installed module comes before a file of its name.": [
        "test_trust.py::test_a_typed_spec_that_is_no_factory_imports_nothing",
        "test_trust.py::test_an_installed_module_comes_before_a_file_of_its_name",
    ],
    "Lines that a report prints for copying show where they need trust.": [
        "test_trust.py::test_printed_lines_show_that_trust_is_needed",
        "test_trust.py::test_code_to_copy_has_no_more_in_it_than_the_network",
    ],
    "Pickled files are refused unopened.": ["test_models_load.py::test_pickles_are_refused_unopened"],
    "A folder is a run's, a study's or a model's by what only those write; in any other folder, files of your own that have our names are neither replaced nor deleted, by `--resume` or by `--overwrite`.": [
        "test_ownership.py::test_a_folder_of_the_users_own_stays_as_it_is"
    ],
    "`--overwrite` removes a run's files, which it knows by their names, and leaves all others, in its subfolders too.": [
        "test_ownership.py::test_overwrite_starts_beside_other_files",
        "test_errors.py::test_overwrite_removes_a_run_and_nothing_else",
    ],
    "`--overwrite` of a study removes what its plan names and nothing else.": [
        "test_ownership.py::test_a_study_overwrites_only_its_own"
    ],
    "What a study makes stays in its folder.": ["test_trust.py::test_what_a_study_prepares_stays_in_its_folder"],
    "`report` replaces reports that protege made, and no other page.": [
        "test_ownership.py::test_a_report_replaces_no_page_of_the_users_own"
    ],
    "A cache and a run do not lie in each other's files.": [
        "test_bad_values.py::test_a_cache_and_a_run_do_not_lie_in_each_other",
        "test_bad_values.py::test_the_default_cache_is_no_run",
    ],
    "A folder serves one process at a time.": ["test_trial.py::test_one_folder_serves_one_run_at_a_time"],
    "Bad input ends a command with one sentence and status 2, and nothing is written.": [
        "test_fuzz.py::test_options",
        "test_fuzz.py::test_recipes",
        "test_fuzz.py::test_configs",
    ],
    "A run goes on, and a finished one counts, only with the data, class names, networks and settings that it was begun with.": [
        "test_origin.py::test_others_are_refused",
        "test_origin.py::test_an_edited_recipe_is_refused",
        "test_identity.py::test_a_finished_run_of_another_teacher_is_refused_by_its_folder_alone",
    ],
    "A study takes no finished run that was made with other data.": [
        "test_identity.py::test_a_study_refuses_finished_runs_of_other_data"
    ],
    "A set in memory, or of files up to 256 MiB, is known by what it holds and in which order; folders and times do not count.": [
        "test_origin.py::test_files_are_known_by_what_they_hold",
        "test_identity.py::test_a_mask_counts_and_times_do_not",
    ],
    "Streamed files of more than 256 MiB together are known by the size and time of each and by 1,024 pieces spread over them.": [
        "test_identity.py::test_files_beyond_the_limit_are_known_by_pieces_size_and_time"
    ],
    "A `Dataset` that is neither in memory nor below 256 MiB is known by its labels, an even choice of its images, and the size and time of the files that it lists; any other by every pixel.": [
        "test_identity.py::test_one_pixel_of_a_large_dataset_is_noticed",
        "test_identity.py::test_files_that_a_dataset_lists_count_beyond_the_limit",
    ],
    "A teacher's signals for other pixels are not used, though the file has the same size and time.": [
        "test_identity.py::test_a_pixel_of_the_same_size_and_time_makes_another_cache"
    ],
    "Cached views whose teacher is not known are cleared.": [
        "test_identity.py::test_views_without_the_file_that_tells_whose_they_are_are_cleared"
    ],
    "A changed bit in a cached signal is found when its view is opened, and that row is computed anew.": [
        "test_identity.py::test_every_bit_of_a_row_counts_and_so_does_its_place",
        "test_identity.py::test_a_changed_bit_of_a_cache_is_computed_anew",
    ],
    "A changed bit in `model.safetensors` is told, unless the folder holds no digest, as those of version 0.1.": [
        "test_identity.py::test_a_changed_bit_of_a_model_is_told"
    ],
    "A damaged file that protege made for itself is made anew, or named with the advice to remove it.": [
        "test_identity.py::test_a_damaged_extraction_is_told_as_ours",
        "test_identity.py::test_damaged_decoded_images_are_decoded_again",
        "test_identity.py::test_damaged_figures_are_measured_again",
        "test_identity.py::test_a_damaged_plan_is_no_plan",
        "test_identity.py::test_what_a_finished_run_lost_is_made_again",
    ],
    "An image is held out by its own bytes: adding or renaming images moves none from training to test, except in a class that would have none on one side.": [
        "test_held_out.py::test_an_image_that_was_trained_on_is_never_held_out",
        "test_held_out.py::test_what_comes_on_top_moves_nothing_from_training_to_test",
    ],
    'With `precision = "fp32"`, and always while networks are loaded, planned for, changed or solved, float32 is multiplied in full, without TF32; what a program had set is back afterwards.': [
        "test_numerics.py::test_a_run",
        "test_numerics.py::test_loading_evaluating_and_caching",
        "test_numerics.py::test_surgery",
    ],
    "Killed at any moment and resumed, a run ends with the student, metrics, recipe and log of one that was never killed, and leaves nothing behind; on a GPU to the bit with `deterministic`, as sums there are made in no fixed order.": [
        "test_kill.py::test_killed_runs_end_as_others_and_leave_nothing_behind"
    ],
    "With `deterministic`, a run has the same bits each time on one kind of GPU too, where it is slower; an operation that torch cannot repeat is named before anything is written. A CPU's run has the same bits without it.": [
        "test_numerics.py::test_a_deterministic_run_has_the_same_bits_on_a_cpu_and_stays_one",
        "test_numerics.py::test_repeatable_inside_and_as_the_user_had_it_outside",
        "test_numerics.py::test_an_operation_that_is_not_repeatable_is_told_before_anything_is_written",
    ],
    "A killed study ends its runs, and goes on at once when it is resumed.": [
        "test_ownership.py::test_a_study_that_was_ended_goes_on_at_once"
    ],
    "Ctrl-C while a checkpoint is written loses nothing.": [
        "test_ownership.py::test_ctrl_c_while_a_checkpoint_is_written"
    ],
    "A full disk ends a run with one sentence, and the run goes on later.": ["test_stopped.py::test_a_full_disk"],
    'Where views are remembered, a teacher\'s signals are rounded to half precision, stored or not; with `views = "all"` they are not rounded.': [
        "test_identity.py::test_what_is_not_stored_is_rounded_like_what_is"
    ],
    "In bf16, what is remembered is what a pass over a block of samples said, to the bit; a pass over a batch says the same to within 2 % of the largest value.": [
        "test_cache.py::test_in_bf16_remembered_and_online_agree_to_two_percent"
    ],
    "A trained student and its folder answer with the same bits.": [
        "test_models_saving.py::test_a_trained_student_and_its_folder_compute_the_same_bits"
    ],
}


def test_each_sentence_of_the_page_has_its_tests():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [line[2:] for line in lines if line.startswith("- ")] == list(PROOFS)
    assert len(lines) <= 60


@pytest.mark.parametrize("proof", sorted({proof for proofs in PROOFS.values() for proof in proofs}))
def test_the_test_is_there(proof):
    file, _, name = proof.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
