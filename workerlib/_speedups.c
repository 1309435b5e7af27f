/* What every call goes through, in C: the twins of small functions in Python, which serve where this was not built.
 * Nothing is decided here that is not decided there: tests/core/test_speedups.py and tests/system/test_eager.py run the
 * same cases on both.
 *
 * Measured with tests/benchmarks/call_path.py: taking a header apart in Python costs four objects and as many
 * comparisons, and a coroutine that ends tells its value by an exception. What is left are the frames of Python in
 * between.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define START_SIZE 10  /* tag, version, type, serializer, flags */
#define SEQ_AT 10      /* 16 bits */
#define LENGTH_AT 12   /* 32 bits */
#define TAIL_AT 16     /* no annotations, no correlation id, reserved, magic number */
#define HEADER_SIZE 40

static const unsigned char TAIL[HEADER_SIZE - TAIL_AT] = {[22] = 0x4d, [23] = 0xc5};

static int
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
    PyObject *message = PyBytes_FromStringAndSize(NULL, HEADER_SIZE + (copies ? size : 0));
    if (message == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(message);
    memcpy(to, start, START_SIZE);
    to[SEQ_AT] = (unsigned char)(seq >> 8);
    to[SEQ_AT + 1] = (unsigned char)seq;
    for (int n = 0; n < 4; n++)
        to[LENGTH_AT + n] = (unsigned char)((uint32_t)size >> (24 - 8 * n));
    memcpy(to + TAIL_AT, TAIL, sizeof TAIL);
    if (copies) {
        memcpy(to + HEADER_SIZE, PyBytes_AS_STRING(args[2]), (size_t)size);
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
    if (!PyBytes_Check(args[0]))
        return PyLong_FromLong(-1);
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t length = PyBytes_GET_SIZE(args[0]) - HEADER_SIZE;
    if (length < prefix_size || memcmp(data, start, START_SIZE) != 0 || memcmp(data + TAIL_AT, TAIL, sizeof TAIL) != 0)
        return PyLong_FromLong(-1);
    uint32_t announced = 0;
    for (int n = 0; n < 4; n++)
        announced = announced << 8 | data[LENGTH_AT + n];
    if (length != (Py_ssize_t)announced || memcmp(data + HEADER_SIZE, prefix, (size_t)prefix_size) != 0)
        return PyLong_FromLong(-1);
    return PyLong_FromLong(data[SEQ_AT] << 8 | data[SEQ_AT + 1]);
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

/* What is being raised, as something that came while an error, which this takes, was being handled. */
static PyObject *
raise_after(PyObject *kind, PyObject *error, PyObject *traceback)
{
    if (kind == NULL)
        return NULL;
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
    return NULL;
}

PyDoc_STRVAR(first_step_doc, "first_step(enter, leave, loop, task, coroutine, /)\n--\n\n"
                             "See workerlib.shell.eager.");

static PyObject *
first_step(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (check_count("first_step", count, 5) < 0)
        return NULL;
    PyObject *enter = args[0], *leave = args[1], *const *loop_and_task = args + 2, *coroutine = args[4];
    PyObject *done = PyObject_Vectorcall(enter, loop_and_task, 2, NULL);
    if (done == NULL)
        return NULL;
    Py_DECREF(done);
    PyObject *value = NULL;
    PySendResult outcome = PyIter_Send(coroutine, Py_None, &value);
    PyObject *kind = NULL, *error = NULL, *traceback = NULL;
    PyErr_Fetch(&kind, &error, &traceback);
    done = PyObject_Vectorcall(leave, loop_and_task, 2, NULL);
    if (done == NULL) {
        Py_XDECREF(value);
        return raise_after(kind, error, traceback);
    }
    Py_DECREF(done);
    if (outcome == PYGEN_ERROR) {
        PyErr_Restore(kind, error, traceback);
        return NULL;
    }
    PyObject *pair = PyTuple_Pack(2, outcome == PYGEN_RETURN ? Py_True : Py_False, value);
    Py_DECREF(value);
    return pair;
}

static PyMethodDef functions[] = {
    {"encode_plain", (PyCFunction)(void (*)(void))encode_plain, METH_FASTCALL, encode_plain_doc},
    {"sole_plain", (PyCFunction)(void (*)(void))sole_plain, METH_FASTCALL, sole_plain_doc},
    {"unfilled", unfilled, METH_O, unfilled_doc},
    {"first_step", (PyCFunction)(void (*)(void))first_step, METH_FASTCALL, first_step_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "workerlib._speedups",
    .m_doc = "Twins in C of functions that every call goes through. There only where a C compiler was.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
