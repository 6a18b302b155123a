"""The reference models of the families' tests."""

from tests.models.conftest import shelf as shelf
from tests.tasks.conftest import make as make
from tests.tasks.conftest import texts as texts
from tests.tasks.test_command_line import typed as typed
from tests.threads import one_thread as one_thread
