import socket
import subprocess
import sys

from tests.support.node import ROOT
from tests.support.ports import END, FIRST, free_port, free_ports


def test_what_this_process_has_no_other_takes() -> None:
    ours = free_port()
    asked = "import sys; from tests.support.ports import take; print([take(int(port)) for port in sys.argv[1:]])"

    done = subprocess.run(
        [sys.executable, "-c", asked, str(ours), str(FIRST - 1)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[False, True]"


def test_none_is_given_twice_and_none_that_the_system_hands_out() -> None:
    ports = free_ports(500)

    assert len(set(ports)) == 500
    assert all(FIRST <= port < END for port in ports)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] >= END
