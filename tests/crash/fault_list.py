"""The faults of a run, what becomes of it, and the test that tries each for real."""

from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- table: tests/crash/fault_list.py -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True)
class Listed:
    """One fault.

    Args:
        fault: what happens to the run.
        outcome: what becomes of it.
        code: with which it exits; None: it goes on, or the table above says more.
        tests: that do it, as `file::function`, below tests/.
    """

    fault: str
    outcome: str
    code: str
    tests: tuple[str, ...]


FAULT_LIST = (
    Listed(
        "Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 in the middle of a step, to any process",
        "finishes the step, saves it, goes on bit for bit",
        "130, 143, 129, 138",
        (
            "training/test_stopping.py::"
            "test_the_step_is_saved_and_going_on_equals_never_having_stopped",
            "training/test_stopping.py::test_a_signal_to_one_process_of_two_stops_both",
        ),
    ),
    Listed(
        "a second Ctrl-C",
        "ends at once; the newest checkpoint is kept",
        "130",
        ("training/test_stopping.py::test_a_second_ctrl_c_ends_at_once",),
    ),
    Listed(
        "a job's deadline",
        "finishes the step, saves it, goes on bit for bit",
        "138",
        ("training/test_stopping.py::test_the_deadline_of_a_job_is_met_with_a_checkpoint",),
    ),
    Listed(
        "SIGKILL, power loss",
        "goes on from the newest checkpoint",
        "",
        ("crash/test_crash_points.py::test_a_crash_loses_nothing",),
    ),
    Listed(
        "disk full",
        "one line with both sizes; work and checkpoints are kept",
        "1",
        (
            "training/test_disk_full.py::test_a_disk_that_fills_up_while_saving",
            "data/test_disk_full.py::test_full_disk_is_one_line_and_keeps_the_work",
            "crash/test_faults.py::test_a_fault_is_told_and_loses_nothing",
        ),
    ),
    Listed(
        "a folder that is read-only, or becomes so",
        "one line",
        "1",
        (
            "training/test_read_only.py::test_a_read_only_disk_is_one_line",
            "crash/test_faults.py::test_a_fault_is_told_and_loses_nothing",
        ),
    ),
    Listed(
        "an I/O error, memory that runs out",
        "one line",
        "1",
        ("crash/test_faults.py::test_a_fault_is_told_and_loses_nothing",),
    ),
    Listed(
        "a flipped or missing byte in a shard of tokens",
        "refused before the first step, by its digest",
        "1",
        (
            "training/test_tokens.py::test_one_token_is_enough_and_a_missing_file_too",
            "crash/test_damage.py::test_damage_is_redone_or_refused",
        ),
    ),
    Listed(
        "a flipped or missing byte in a checkpoint, or one of another run",
        "set aside, said once; goes on from the one before",
        "",
        (
            "crash/test_damage.py::test_damage_is_redone_or_refused",
            "training/test_resuming.py::"
            "test_a_checkpoint_of_another_run_of_the_same_settings_does_not_serve",
        ),
    ),
    Listed(
        "other settings on resuming",
        "refused with what differs; nothing is changed",
        "1",
        ("e2e/test_resume.py::test_other_settings_do_not_continue_and_the_same_do",),
    ),
    Listed(
        "one process of several dies",
        "the others end in one line; goes on from the newest checkpoint",
        "1",
        ("training/test_peers.py::test_a_dead_process_ends_the_other_and_the_run_goes_on",),
    ),
    Listed(
        "a worker of `tokenize` or `reproduce --workers` dies, or what began it",
        "the others end, with the step of a training run saved, unless what began them was "
        "killed; the same command goes on",
        "1, or the signal's",
        (
            "workspace/test_processes.py::test_the_others_may_save_what_they_are_at",
            "workspace/test_processes.py::test_workers_die_with_their_parent",
            "e2e/test_workers.py::test_nothing_outlives_it_and_it_goes_on",
        ),
    ),
    Listed(
        "a second process in the same folder",
        "the second is refused; the first goes on",
        "1",
        (
            "training/test_peers.py::"
            "test_a_second_process_in_the_same_folder_is_refused_and_the_first_goes_on",
            "workspace/test_lock.py::test_a_folder_is_held_by_one",
        ),
    ),
    Listed(
        "loss, gradient, or weights that aren't finite",
        "ends, never saves them, keeps the last good checkpoint, and says so when started again",
        "1",
        (
            "training/test_divergence.py::test_training_stops_with_its_last_good_checkpoint",
            "training/test_bad_steps.py::test_the_run_ends_before_the_weights_are_hurt",
        ),
    ),
    Listed(
        "the same, or a spike, with `optim.bad_steps`",
        "the step is left out by all processes; its batch is in the log",
        "",
        (
            "training/test_bad_steps.py::test_a_step_that_is_left_out_moves_nothing",
            "training/test_bad_steps.py::test_a_batch_of_noise_is_a_spike",
            "training/test_bad_steps.py::"
            "test_all_processes_leave_the_step_out_that_one_of_them_breaks",
        ),
    ),
)


def shown() -> str:
    """The list as Markdown."""
    lines = ["| fault | what becomes of the run | exit code | tried by |", "|---|---|---|---|"]
    for each in FAULT_LIST:
        files = dict.fromkeys(name.split("::")[0] for name in each.tests)
        links = ", ".join(f"[{Path(file).name}](../tests/{file})" for file in files)
        lines.append(f"| {each.fault} | {each.outcome} | {each.code} | {links} |")
    return "\n".join(lines) + "\n"
