"""The job API of a Ray cluster, reached over HTTP: what goes wrong there, as one sentence."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from slime_ray.errors import ClusterError, ConfigError

# Ray tells of packages and sockets at level INFO.
for _chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{_chatty}").setLevel(logging.WARNING)

_TIMEOUT_S = (5.0, 60.0)  # to connect; for an answer
# The time to connect is also the time to send.
_UPLOAD_TIMEOUT_S = (900.0, 60.0)
_TOKEN = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH, the file of the cluster's token (or RAY_AUTH_TOKEN)"
# What Ray says of a token, by a part of it.
_REFUSALS = {
    "Authentication required": "it asks for a token, and none was sent",
    "Authentication failed": "it refuses the token",
    "cannot be opened or is empty": "the file that RAY_AUTH_TOKEN_PATH names cannot be read or is empty",
    "": "RAY_AUTH_MODE=token, and no token was found",
}


class RefusedError(ClusterError):
    """The cluster answered a request with an error."""


class Connection(JobSubmissionClient):
    """Ray's own client, with a time limit for every request and one sentence for every failure."""

    def __init__(self, address: str) -> None:
        """Reach a cluster.

        Args:
            address: of its dashboard, such as http://10.0.0.1:8265.

        Raises:
            ConfigError: it is no such address.
            ClusterError: nothing answers there, it is no Ray cluster or one of another version, or the token is missing
                or wrong.
        """
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--address {address}: expected the dashboard of a Ray cluster, such as http://10.0.0.1:8265"
            )
        self.address = address
        # Ray takes this variable, or RAY_ADDRESS, before what it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        with self._told():
            super().__init__(address)
        if self._server_ray_version != ray.__version__:
            raise ClusterError(
                f"{address}: the cluster runs Ray {self._server_ray_version}, and this is Ray {ray.__version__}; "
                f"install ray=={self._server_ray_version} here or ray=={ray.__version__} there"
            )
        self.jobs()  # asks for the token, which the version does not

    def jobs(self) -> list[JobDetails]:
        """All jobs that were submitted to the cluster since it was started, oldest first."""
        with self._told():
            found = [job for job in self.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def job(self, submission_id: str) -> JobDetails:
        """One job as it is now.

        Raises:
            ClusterError: there is none of this id.
        """
        found = [job for job in self.jobs() if job.submission_id == submission_id]
        if not found:
            raise ClusterError(f"{submission_id}: {self.address} has no such job; `slime-ray jobs` lists them")
        return found[0]

    def submit_job(self, **options: Any) -> str:
        """As Ray's; raises RefusedError."""
        with self._told():
            return super().submit_job(**options)

    def stop_job(self, job_id: str) -> bool:
        """As Ray's; raises RefusedError."""
        with self._told():
            return super().stop_job(job_id)

    def get_job_logs(self, job_id: str) -> str:
        """As Ray's; raises RefusedError."""
        with self._told():
            return super().get_job_logs(job_id)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        with self._told():
            timeout_s = _TIMEOUT_S if options.get("data") is None else _UPLOAD_TIMEOUT_S
            return super()._do_request(method, endpoint, timeout=timeout_s, **options)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what Ray and requests raise into one sentence."""
        try:
            yield
        except AuthenticationError as error:
            problem = next(words for sign, words in _REFUSALS.items() if sign in str(error))
            raise ClusterError(f"{self.address}: {problem}; set {_TOKEN}") from None
        except (requests.exceptions.Timeout, requests.exceptions.ConnectionError, ConnectionError) as error:
            reason = "no answer in time" if isinstance(error, requests.exceptions.Timeout) else "no connection"
            raise ClusterError(
                f"{self.address}: no Ray cluster answers there ({reason}); look at the address, and whether its head "
                "node is up"
            ) from None
        except (requests.exceptions.RequestException, RuntimeError, ValueError, KeyError) as error:
            if isinstance(error, RuntimeError) and "status code" in str(error):
                last = str(error).strip().splitlines()[-1]
                raise RefusedError(f"{self.address}: the cluster does not do it: {last}") from None
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ClusterError(
                f"{self.address}: answers, but not as a Ray cluster's dashboard does ({first})"
            ) from None
