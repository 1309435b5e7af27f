/* What the C files share. Not for others: the names stay inside of the module. */

#ifndef WORKERLIB_SPEEDUPS_H
#define WORKERLIB_SPEEDUPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define START_SIZE 10  /* tag, version, type, serializer, flags */
#define HEADER_SIZE 40

#pragma GCC visibility push(hidden)

int check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted);

/* A new message with its header, and room for `body` bytes behind it. */
PyObject *begin_message(const unsigned char *start, long seq, Py_ssize_t announced, Py_ssize_t body);

/* The sequence number of the plain message that `data` is; -1 when it is something else. */
long seq_of_sole(PyObject *data, const unsigned char *start, const unsigned char *prefix, Py_ssize_t prefix_size);

/* Runs a coroutine up to its first suspension as a task: 0 when it has run, and what `outcome` and `value` say, or an
 * error of its own is being raised; -1 when entering or leaving the task has failed.
 */
int step(PyObject *enter, PyObject *leave, PyObject *loop, PyObject *task, PyObject *coroutine, PySendResult *outcome,
         PyObject **value);

/* In _shortcuts.c */
int look_up_names(void);
PyObject *data_receiver(PyObject *module, PyObject *constants);
PyObject *answerer(PyObject *module, PyObject *constants);
PyObject *runner(PyObject *module, PyObject *constants);
PyObject *result_taker(PyObject *module, PyObject *constants);

#pragma GCC visibility pop

#endif
