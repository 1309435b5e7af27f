/* What every call goes through, in C. All of it is there in Python, too, and serves where this was not built: nothing is
 * decided here that is not decided there, and the tests run the same cases on both (tests/twins.py).
 *
 * Here are the leaves, small functions of workerlib.core.frames, workerlib.spec, workerlib.shell.eager and
 * workerlib.shell.alarm, and the table of all. The shortcuts are in _shortcuts.c.
 */

#include "_speedups.h"

#include <stdint.h>
#include <string.h>
#include <sys/timerfd.h>

#define INTERFACE 2  /* as in workerlib/core/compiled.py */

#define SEQ_AT 10     /* 16 bits */
#define LENGTH_AT 12  /* 32 bits */
#define TAIL_AT 16    /* no annotations, no correlation id, reserved, magic number */

static const unsigned char TAIL[HEADER_SIZE - TAIL_AT] = {[22] = 0x4d, [23] = 0xc5};

int
check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, %zd were given", name, wanted, given);
    return -1;
}

static const unsigned char *
bytes_of(PyObject *object, Py_ssize_t *size)
{
    char *data;
    return PyBytes_AsStringAndSize(object, &data, size) < 0 ? NULL : (const unsigned char *)data;
}

static int
check_start(Py_ssize_t size)
{
    if (size == START_SIZE)
        return 0;
    PyErr_Format(PyExc_ValueError, "the start of a message has %d bytes, not %zd", START_SIZE, size);
    return -1;
}

PyObject *
begin_message(const unsigned char *start, long seq, Py_ssize_t announced, Py_ssize_t body)
{
    PyObject *message = PyBytes_FromStringAndSize(NULL, HEADER_SIZE + body);
    if (message == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(message);
    memcpy(to, start, START_SIZE);
    to[SEQ_AT] = (unsigned char)(seq >> 8);
    to[SEQ_AT + 1] = (unsigned char)seq;
    for (int n = 0; n < 4; n++)
        to[LENGTH_AT + n] = (unsigned char)((uint32_t)announced >> (24 - 8 * n));
    memcpy(to + TAIL_AT, TAIL, sizeof TAIL);
    return message;
}

long
seq_of_sole(PyObject *data, const unsigned char *start, const unsigned char *prefix, Py_ssize_t prefix_size)
{
    if (!PyBytes_Check(data))
        return -1;
    const unsigned char *at = (const unsigned char *)PyBytes_AS_STRING(data);
    Py_ssize_t length = PyBytes_GET_SIZE(data) - HEADER_SIZE;
    if (length < prefix_size || memcmp(at, start, START_SIZE) != 0 || memcmp(at + TAIL_AT, TAIL, sizeof TAIL) != 0)
        return -1;
    uint32_t announced = 0;
    for (int n = 0; n < 4; n++)
        announced = announced << 8 | at[LENGTH_AT + n];
    if (length != (Py_ssize_t)announced || memcmp(at + HEADER_SIZE, prefix, (size_t)prefix_size) != 0)
        return -1;
    return at[SEQ_AT] << 8 | at[SEQ_AT + 1];
}

PyDoc_STRVAR(encode_plain_doc, "encode_plain(start, seq, payload, /)\n--\n\n"
                               "See workerlib.core.frames.");

static PyObject *
encode_plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t start_size, size;
    const unsigned char *start;
    if (check_count("encode_plain", count, 3) < 0 || (start = bytes_of(args[0], &start_size)) == NULL ||
        check_start(start_size) < 0 || (size = PyObject_Size(args[2])) < 0)
        return NULL;
    long seq = PyLong_AsLong(args[1]);
    if (seq == -1 && PyErr_Occurred())
        return NULL;
    if (seq < 0 || seq > UINT16_MAX || size > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a sequence number has 16 bits, the length of a payload 32");
        return NULL;
    }
    int copies = PyBytes_CheckExact(args[2]);
    PyObject *message = begin_message(start, seq, size, copies ? size : 0);
    if (message == NULL)
        return NULL;
    if (copies) {
        memcpy(PyBytes_AS_STRING(message) + HEADER_SIZE, PyBytes_AS_STRING(args[2]), (size_t)size);
        return message;
    }
    PyObject *whole = PyNumber_Add(message, args[2]);  /* Parts: they join themselves */
    Py_DECREF(message);
    return whole;
}

PyDoc_STRVAR(sole_plain_doc, "sole_plain(data, start, prefix, /)\n--\n\n"
                             "See workerlib.core.frames.");

static PyObject *
sole_plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t start_size, prefix_size;
    const unsigned char *start, *prefix;
    if (check_count("sole_plain", count, 3) < 0 || (start = bytes_of(args[1], &start_size)) == NULL ||
        check_start(start_size) < 0 || (prefix = bytes_of(args[2], &prefix_size)) == NULL)
        return NULL;
    return PyLong_FromLong(seq_of_sole(args[0], start, prefix, prefix_size));
}

PyDoc_STRVAR(unfilled_doc, "unfilled(size, /)\n--\n\n"
                           "See workerlib.core.frames.");

static PyObject *
unfilled(PyObject *Py_UNUSED(module), PyObject *object)
{
    Py_ssize_t size = PyLong_AsSsize_t(object);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "memory of less than nothing");
        return NULL;
    }
    return PyByteArray_FromStringAndSize(NULL, size);
}

static PyObject *
bind(PyObject *function, PyObject *const *args, Py_ssize_t count)
{
    if (check_count("__get__", count, 2) < 0)
        return NULL;
    if (args[0] == Py_None)
        return Py_NewRef(function);
    PyObject *call = PyObject_GetAttrString(function, "call");
    if (call == NULL)
        return NULL;
    PyObject *bound = PyObject_CallMethod(call, "__get__", "OO", args[0], args[1]);
    Py_DECREF(call);
    return bound;
}

static PyMethodDef bind_method = {"__get__", (PyCFunction)(void (*)(void))bind, METH_FASTCALL, NULL};

PyDoc_STRVAR(binder_doc, "binder(kind, /)\n--\n\n"
                         "A method of that class of functions; see workerlib.spec.Function.__get__.");

static PyObject *
binder(PyObject *Py_UNUSED(module), PyObject *kind)
{
    if (PyType_Check(kind))
        return PyDescr_NewMethod((PyTypeObject *)kind, &bind_method);
    PyErr_SetString(PyExc_TypeError, "methods are of classes");
    return NULL;
}

/* What is being raised, as something that came while an error, which this takes, was being handled. */
static void
raise_after(PyObject *kind, PyObject *error, PyObject *traceback)
{
    if (kind == NULL)
        return;
    PyErr_NormalizeException(&kind, &error, &traceback);
    PyObject *later_kind, *later, *later_traceback;
    PyErr_Fetch(&later_kind, &later, &later_traceback);
    PyErr_NormalizeException(&later_kind, &later, &later_traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *last = Py_NewRef(later), *before;
    while ((before = PyException_GetContext(last)) != NULL)
        Py_SETREF(last, before);
    PyException_SetContext(last, error);  /* takes the reference */
    Py_DECREF(last);
    Py_DECREF(kind);
    Py_XDECREF(traceback);
    PyErr_Restore(later_kind, later, later_traceback);
}

int
step(PyObject *enter, PyObject *leave, PyObject *loop, PyObject *task, PyObject *coroutine, PySendResult *outcome,
     PyObject **value)
{
    PyObject *loop_and_task[] = {loop, task};
    PyObject *done = PyObject_Vectorcall(enter, loop_and_task, 2, NULL);
    if (done == NULL)
        return -1;
    Py_DECREF(done);
    *outcome = PyIter_Send(coroutine, Py_None, value);
    PyObject *kind = NULL, *error = NULL, *traceback = NULL;
    PyErr_Fetch(&kind, &error, &traceback);
    done = PyObject_Vectorcall(leave, loop_and_task, 2, NULL);
    if (done == NULL) {
        Py_CLEAR(*value);
        raise_after(kind, error, traceback);
        return -1;
    }
    Py_DECREF(done);
    PyErr_Restore(kind, error, traceback);
    return 0;
}

PyDoc_STRVAR(first_step_doc, "first_step(enter, leave, loop, task, coroutine, /)\n--\n\n"
                             "See workerlib.shell.eager.");

static PyObject *
first_step(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (check_count("first_step", count, 5) < 0)
        return NULL;
    PySendResult outcome;
    PyObject *value = NULL;
    if (step(args[0], args[1], args[2], args[3], args[4], &outcome, &value) < 0 || outcome == PYGEN_ERROR)
        return NULL;
    PyObject *pair = PyTuple_Pack(2, outcome == PYGEN_RETURN ? Py_True : Py_False, value);
    Py_DECREF(value);
    return pair;
}

PyDoc_STRVAR(open_timer_doc, "open_timer()\n--\n\n"
                             "The descriptor of a timer of the kernel, to be read from when it has run out.");

static PyObject *
open_timer(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

PyDoc_STRVAR(set_timer_doc, "set_timer(fd, when, /)\n--\n\n"
                            "Has it run out when `time.monotonic()` is `when`, a positive number, and not before.");

static PyObject *
set_timer(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    double when;
    if (!PyArg_ParseTuple(args, "id:set_timer", &fd, &when))
        return NULL;
    if (!(when > 0 && when < 1e9)) {
        PyErr_SetString(PyExc_ValueError, "a time that no clock will show");
        return NULL;
    }
    struct itimerspec time = {.it_value = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (double)(time_t)when) * 1e9)}};
    if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &time, NULL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"encode_plain", (PyCFunction)(void (*)(void))encode_plain, METH_FASTCALL, encode_plain_doc},
    {"sole_plain", (PyCFunction)(void (*)(void))sole_plain, METH_FASTCALL, sole_plain_doc},
    {"unfilled", unfilled, METH_O, unfilled_doc},
    {"binder", binder, METH_O, binder_doc},
    {"first_step", (PyCFunction)(void (*)(void))first_step, METH_FASTCALL, first_step_doc},
    {"open_timer", open_timer, METH_NOARGS, open_timer_doc},
    {"set_timer", set_timer, METH_VARARGS, set_timer_doc},
    {"data_receiver", data_receiver, METH_VARARGS, "What workerlib.shell.transport.Wire.data_received does."},
    {"answerer", answerer, METH_VARARGS, "What the shortcut of workerlib.serving.ServerConnection does."},
    {"runner", runner, METH_VARARGS, "What workerlib.connection.Connection.run does."},
    {"result_taker", result_taker, METH_VARARGS, "What the shortcut of workerlib.connection.Connection does."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "workerlib._speedups",
    .m_doc = "Twins in C of what every call goes through. There only where a C compiler was.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    PyObject *module = look_up_names() < 0 ? NULL : PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "INTERFACE", INTERFACE) < 0)
        Py_CLEAR(module);
    return module;
}
