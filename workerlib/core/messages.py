"""MESSAGE_IDs of workerlib's own events that the catalog (deploy/parsupd.catalog) describes. An id is for ever."""

MESSAGE_IDS = {
    "records_lost": "3b39123cd7c34c71a0a182067e2ff7cf",
    "worker_ends": "8b0c6f02bfa64b398d556e0df422ceb8",
    "uncaught": "7eea29614c2a4744a6139e93f2dc35ca",
}
