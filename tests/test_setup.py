"""scripts/setup.sh on machines that lack something: each ends with a message and the command that fixes it.

The machine is a folder of stand-ins for the commands that the script asks; nothing is installed.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REAL = ["awk", "bash", "cat", "cut", "dirname", "env", "find", "grep", "mkdir", "rm", "sha256sum", "tail", "touch"]

PYTHON = r"""#!/usr/bin/env bash
# stands in for the interpreter, and for the one in the virtual environment
case "$*" in
  *version_info*"3, 11"*) exit 0 ;;
  *version_info*) echo 3.12 ;;
  *"ensurepip, venv"*) exit ${NO_VENV_MODULE:-0} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") [ "$(dirname "$0")" != "$TOOLS" ] ;;
  "-m pip download"*) echo "ERROR: no index" >&2; exit ${NO_INDEX:-0} ;;
  "-m pip install"*) echo "$*" >> "$TOOLS/installed"; exit ${PIP_FAILS:-0} ;;
  "-m pip "*) exit 0 ;;
  "-m crusades.cli doctor") echo "${DOCTOR-}"; exit ${DOCTOR_LEVEL:-0} ;;
  *importlib.metadata*) exit 1 ;;
  "scripts/download_size.py"*) echo "${SIZES-}" ;;
  -V) echo Python 3.12.0 ;;
esac
"""
STUBS = {
    "python3.11": PYTHON,
    "id": "#!/usr/bin/env bash\necho ${AS_UID:-1000}\n",
    "df": "#!/usr/bin/env bash\necho head; echo disk 0 0 ${FREE_KB:-99000000} 0% /\n",
    "bwrap": '#!/usr/bin/env bash\n[ -z "${NO_USERNS:-}" ] || { echo "${BWRAP_SAYS:-bwrap: No permissions to create new namespace}" >&2; exit 1; }\n',
}


@pytest.fixture
def machine(tmp_path):
    """Call it with environment variables and commands to take away; it returns (exit code, what was said)."""
    tools, proc = tmp_path / "tools", tmp_path / "proc"
    tools.mkdir()
    for name in [*REAL, "cp"]:
        (tools / name).symlink_to(shutil.which(name))
    for name, text in STUBS.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*without, command=(), stubs=None, proc_sys=None, **variables):
        for name in without:
            (tools / name).unlink()
        for name, text in (stubs or {}).items():
            (tools / name).write_text("#!/usr/bin/env bash\n" + text)
            (tools / name).chmod(0o755)
        for name, text in (proc_sys or {}).items():
            (proc / name).parent.mkdir(parents=True, exist_ok=True)
            (proc / name).write_text(text)
        environment = {"PATH": str(tools), "TOOLS": str(tools), "VENV": str(tmp_path / "venv"), "PROC_SYS": str(proc), "SIZES": "200000000 10 cpu", **variables}
        done = subprocess.run([tools / "bash", ROOT / "scripts" / "setup.sh", *command], env=environment, capture_output=True, text=True, timeout=30, check=False)
        installed = tools / "installed"
        run.installed = installed.read_text().splitlines() if installed.exists() else []
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_good_machine_is_set_up_and_the_second_time_nothing_is_done(machine):
    code, words = machine()
    assert code == 0, words
    assert "200 MB to download" in words
    first = run_installed = machine.installed
    assert ["torch==" in line for line in first] == [True, False], "torch comes first, by itself"
    code, words = machine()
    assert (code, words, machine.installed) == (0, "", run_installed)


def test_no_python(machine):
    code, words = machine("python3.11")
    assert code == 1
    assert "apt-get install python3" in words


def test_no_venv_module_and_no_right_to_install_it(machine):
    code, words = machine(NO_VENV_MODULE="1")
    assert code == 1
    assert "sudo apt-get install python3.12-venv" in words


def test_no_venv_module_is_installed_where_root_may(machine):
    code, words = machine(NO_VENV_MODULE="1", AS_UID="0", stubs={"apt-get": 'echo "apt $*"'})
    assert code == 0, words
    assert "apt install -y -qq --no-install-recommends python3.12-venv" in words


def test_a_half_made_environment_is_made_anew(machine, tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    code, words = machine()
    assert code == 0, words
    assert "making a virtual environment" in words


@pytest.mark.parametrize("command", [(), ("clean",)], ids=["setup", "clean"])
@pytest.mark.parametrize("inside", ["thesis.tex", ".ssh/id_ed25519", "lib/python3.12/mine.py", "bin/backup.sh"])
def test_a_folder_that_is_no_environment_is_never_deleted(machine, tmp_path, command, inside):
    kept = tmp_path / "data" / inside
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    code, words = machine(command=command, VENV=str(tmp_path / "data"))
    assert code == 1
    assert "nothing was deleted" in words
    assert kept.read_text() == "years of work"


def test_an_environment_with_other_things_beside_it_is_not_deleted(machine, tmp_path):
    (tmp_path / "pyvenv.cfg").touch()  # a home folder in which somebody once ran `python -m venv .`
    (tmp_path / "thesis.tex").touch()
    code, _ = machine(command=("clean",), VENV=str(tmp_path))
    assert code == 1
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_place_of_the_environment_is_not_deleted(machine, tmp_path):
    (tmp_path / "file").touch()
    assert machine(VENV=str(tmp_path / "file"))[0] == 1
    assert (tmp_path / "file").exists()


def test_clean_removes_an_environment_of_any_age(machine, tmp_path):
    venv = tmp_path / "venv"
    (venv / "lib" / "python3.12").mkdir(parents=True)
    (venv / "lib64").symlink_to("lib")
    assert machine(command=("clean",))[0] == 0, "a half-made one"
    assert not venv.exists()
    (venv / "bin").mkdir(parents=True)
    for name in ("pyvenv.cfg", ".crusades-setup", "bin/python"):
        (venv / name).touch()
    assert machine(command=("clean",))[0] == 0, "a whole one"
    assert not venv.exists()
    assert machine(command=("clean",)) == (0, ""), "none"


def test_make_clean_deletes_no_folder_by_itself(tmp_path):
    done = subprocess.run(["make", "--dry-run", "clean", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(tmp_path) not in done.stdout
    assert "scripts/setup.sh clean" in done.stdout


def test_no_disk(machine):
    code, words = machine(FREE_KB="500000", SIZES="3000000000 40 cuda")
    assert code == 1
    assert "512 MB free" in words
    assert "    VENV=/another/disk/crusades-venv and the same command again\n" in words
    assert machine.installed == []


def test_the_size_of_a_cuda_build_is_said_before_it_is_downloaded(machine):
    code, words = machine(SIZES="3100000000 40 cuda")
    assert code == 0
    assert "3.1 GB to download" in words
    assert "TORCH_INDEX" in words


def test_no_network(machine):
    code, words = machine(SIZES="", NO_INDEX="1")
    assert code == 1
    assert "package index cannot be reached" in words
    assert "ERROR: no index" in words


def test_pip_fails_in_the_middle_and_the_next_call_goes_on(machine):
    code, words = machine(PIP_FAILS="1")
    assert code == 1
    assert "run the same command again" in words
    assert machine()[0] == 0


def test_no_bubblewrap_and_no_right_to_install_it(machine):
    code, words = machine("bwrap")
    assert code == 1
    assert "sudo apt-get install bubblewrap" in words


@pytest.mark.parametrize(("missing", "package"), [("bwrap", "bubblewrap"), ("python3.12-venv", "python3.12-venv")])
def test_root_whose_apt_fails_is_not_told_about_a_password(machine, missing, package):
    away = ("bwrap",) if missing == "bwrap" else ()
    code, words = machine(*away, NO_VENV_MODULE="" if away else "1", AS_UID="0", stubs={"apt-get": 'echo "Temporary failure resolving" >&2; exit 100'})
    assert code == 1
    assert "apt could not install it" in words
    assert f"sudo apt-get update && sudo apt-get install {package}" in words
    assert "password" not in words


def test_who_may_not_install_is_told_the_command(machine):
    code, words = machine("bwrap", stubs={"apt-get": "exit 0"})
    assert code == 1
    assert "without a password" in words
    assert "sudo apt-get install bubblewrap" in words


def test_bubblewrap_is_installed_where_root_may(machine, tmp_path):
    tools = tmp_path / "tools"
    code, words = machine("bwrap", AS_UID="0", stubs={"apt-get": f'printf "#!/usr/bin/env bash\\n" > {tools}/bwrap; /bin/chmod 755 {tools}/bwrap'})
    assert code == 0, words


def test_apparmor_as_on_ubuntu_24(machine):
    code, words = machine(NO_USERNS="1", proc_sys={"kernel/apparmor_restrict_unprivileged_userns": "1\n"})
    assert code == 1
    assert "sudo tee /etc/apparmor.d/bwrap" in words
    assert "userns," in words


@pytest.mark.parametrize(("key", "fix"), [("kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone=1"), ("user/max_user_namespaces", "user.max_user_namespaces=")])
def test_user_namespaces_off(machine, key, fix):
    code, words = machine(NO_USERNS="1", proc_sys={key: "0\n"})
    assert code == 1
    assert fix in words


def test_a_sandbox_that_fails_for_another_reason_points_to_the_doctor(machine):
    code, words = machine(NO_USERNS="1")
    assert code == 1
    assert "No permissions to create new namespace" in words
    assert "doctor" in words or "container" in words


@pytest.mark.parametrize("says", ["bwrap: Unknown option --disable-userns", "bwrap: unrecognized option '--disable-userns'"])
def test_bubblewrap_of_ubuntu_22_is_too_old(machine, says):
    code, words = machine(NO_USERNS="1", BWRAP_SAYS=says)
    assert code == 1
    assert "bubblewrap is too old: 0.8 or newer is needed" in words
    assert "CRUSADES_BWRAP=" in words


def test_a_mandatory_wall_that_is_down_stops_the_set_up_with_the_doctors_words(machine):
    found = "ok    kernel   Linux 6.8\nDOWN  cgroups  none are mounted\n                → start it with --cgroupns=private\nwarn  tools    missing: g++\n                → sudo apt install g++"
    code, words = machine(DOCTOR=found, DOCTOR_LEVEL="2")
    assert code == 1
    assert "cgroups  none are mounted" in words
    assert "--cgroupns=private" in words
    assert "g++" not in words
    assert "kernel" not in words


def test_a_wall_that_could_be_better_does_not_stop_the_set_up(machine):
    assert machine(DOCTOR="warn  tools  missing: g++", DOCTOR_LEVEL="1")[0] == 0
