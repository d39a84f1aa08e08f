"""Every exception the driver can raise becomes one of ours."""

import inspect

import asyncpg
import pytest

from adapters.postgres.errors import error_class, translate, translated
from ports.errors import AgentOSError, Conflict, Internal, InvalidArgument, Unavailable


def exceptions_of(module: object) -> list[type[BaseException]]:
    found = inspect.getmembers(module, lambda one: inspect.isclass(one) and issubclass(one, BaseException))
    # Warnings are for developers, not for callers; pytest turns ours into errors.
    return [one for _, one in found if not issubclass(one, Warning) or one is asyncpg.InterfaceWarning]


class TestCompleteness:
    @pytest.mark.parametrize("kind", exceptions_of(asyncpg.exceptions), ids=lambda kind: kind.__name__)
    def test_each_of_the_drivers_exceptions_has_one_of_ours(self, kind: type[BaseException]) -> None:
        ours = error_class(kind)

        assert ours is not None
        assert issubclass(ours, AgentOSError)


class TestTranslation:
    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            (asyncpg.UniqueViolationError("x"), Conflict),
            (asyncpg.LockNotAvailableError("x"), Unavailable),
            (asyncpg.QueryCanceledError("x"), Unavailable),
            (asyncpg.DiskFullError("x"), Unavailable),
            (asyncpg.TooManyConnectionsError("x"), Unavailable),
            (asyncpg.AdminShutdownError("x"), Unavailable),
            (asyncpg.DeadlockDetectedError("x"), Unavailable),
            (asyncpg.InvalidPasswordError("x"), Unavailable),
            (asyncpg.IdleInTransactionSessionTimeoutError("x"), Unavailable),
            (asyncpg.CharacterNotInRepertoireError("x"), InvalidArgument),
            (asyncpg.InsufficientPrivilegeError("x"), Internal),
            (asyncpg.UndefinedTableError("x"), Internal),
            (asyncpg.CheckViolationError("x"), Internal),
            (asyncpg.InterfaceError("connection is closed"), Unavailable),
            (ConnectionResetError("x"), Unavailable),
            (ConnectionRefusedError("x"), Unavailable),
            (TimeoutError("x"), Unavailable),
        ],
        ids=lambda one: one.__name__ if isinstance(one, type) else type(one).__name__,
    )
    def test_an_error_becomes_the_one_that_says_what_to_do(
        self, theirs: BaseException, ours: type[AgentOSError]
    ) -> None:
        with pytest.raises(ours) as raised, translated():
            raise theirs

        assert raised.value.__cause__ is theirs

    def test_the_text_never_quotes_the_server(self) -> None:
        told = translate(asyncpg.UniqueViolationError('Key (principal)=(usr_ann@example.com) "already" exists'))

        assert told is not None
        assert "usr_ann" not in told.message

    def test_ours_and_strangers_pass_through(self) -> None:
        for error in (Conflict("x"), KeyError("x")):
            with pytest.raises(type(error)) as raised, translated():
                raise error
            assert raised.value is error
