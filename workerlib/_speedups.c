/* What every call goes through, in C. All of it is there in Python, too, and serves where this was not built: nothing is
 * decided here that is not decided there, and the tests run the same cases on both (tests/twins.py).
 *
 * First the leaves, small functions of workerlib.core.frames and workerlib.shell.eager. Then the shortcuts, which take
 * one call through all of workerlib, past the frames of Python in between: between two processes that wait for each other
 * each of those costs twice what it does in a loop of its own, for the caches are cold after each switch. Measured with
 * tests/benchmarks/call_path.py and `make bench`: a call takes 1.7 times as long as its bytes on a socket, without the
 * shortcuts 2.3 times, without any of this 2.9 times.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <string.h>

#define INTERFACE 2  /* as in workerlib/core/compiled.py */

#define START_SIZE 10  /* tag, version, type, serializer, flags */
#define SEQ_AT 10      /* 16 bits */
#define LENGTH_AT 12   /* 32 bits */
#define TAIL_AT 16     /* no annotations, no correlation id, reserved, magic number */
#define HEADER_SIZE 40
#define MAX_SEQ 0xFFFF

#define NO_KEYWORDS 0x80  /* MessagePack's empty map */

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

/* A new message with its header, and room for `body` bytes behind it. */
static PyObject *
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

/* The sequence number of the plain message that `data` is; -1 when it is something else. */
static long
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

PyDoc_STRVAR(bind_doc, "bind(function, instance, owner, /)\n--\n\n"
                       "See workerlib.spec.Function.__get__.");

static PyObject *
bind(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (check_count("__get__", count, 3) < 0)
        return NULL;
    if (args[1] == Py_None)
        return Py_NewRef(args[0]);
    PyObject *call = PyObject_GetAttrString(args[0], "call");
    if (call == NULL)
        return NULL;
    PyObject *bound = PyObject_CallMethod(call, "__get__", "OO", args[1], args[2]);
    Py_DECREF(call);
    return bound;
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

/* Runs a coroutine up to its first suspension as a task: 0 when it has run, and what `outcome` and `value` say, or an
 * error of its own is being raised; -1 when entering or leaving the task has failed.
 */
static int
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

/* The shortcuts. Each is a function made with what it needs for as long as its connection lives, a tuple that it has as
 * `self`. What changes meanwhile it looks up by name: that is the whole of what the two languages know of each other.
 */

/* An attribute of objects of ours. Where its class declares it in __slots__ it is read and written in its place, else as
 * by Python; the first class that is met is the one for which the place is kept.
 */
typedef struct {
    PyObject *name;
    PyTypeObject *owner;
    Py_ssize_t offset;
} Attribute;

#define ATTRIBUTES(X) X(closed) X(_heard) X(_seq) X(write) X(_hot) X(_idle_task) X(_base_context) X(calls) X(_coroutine) \
                      X(_context) X(reusable) X(value) X(is_plain) X(prefix) X(name) X(results) X(one)
#define METHODS(X) X(write_together) X(receive) X(fail) X(answer_slowly) X(suspend) X(end_at_once) X(error) X(done) \
                   X(set_result) X(set_exception)
#define DECLARE_ATTRIBUTE(of) static Attribute at_##of;
ATTRIBUTES(DECLARE_ATTRIBUTE)
#define DECLARE_METHOD(of) static PyObject *name_##of;
METHODS(DECLARE_METHOD)

static int
look_up_names(void)
{
#define LOOK_UP_ATTRIBUTE(of) if ((at_##of.name = PyUnicode_InternFromString(#of)) == NULL) return -1;
    ATTRIBUTES(LOOK_UP_ATTRIBUTE)
#define LOOK_UP_METHOD(of) if ((name_##of = PyUnicode_InternFromString(#of)) == NULL) return -1;
    METHODS(LOOK_UP_METHOD)
    return 0;
}

/* Where an object has an attribute; NULL when it is not in a slot, or in that of a class that was not met first. */
static PyObject **
place_of(PyObject *object, Attribute *attribute)
{
    if (attribute->owner == NULL) {
        PyObject *slot = PyObject_GetAttr((PyObject *)Py_TYPE(object), attribute->name);
        if (slot == NULL)
            PyErr_Clear();
        else if (Py_IS_TYPE(slot, &PyMemberDescr_Type) && ((PyMemberDescrObject *)slot)->d_member->type == T_OBJECT_EX) {
            attribute->offset = ((PyMemberDescrObject *)slot)->d_member->offset;
            attribute->owner = (PyTypeObject *)Py_NewRef(PyDescr_TYPE(slot));
        }
        Py_XDECREF(slot);
    }
    if (attribute->owner == NULL || !PyObject_TypeCheck(object, attribute->owner))
        return NULL;
    return (PyObject **)((char *)object + attribute->offset);
}

static PyObject *
get(PyObject *object, Attribute *attribute)
{
    PyObject **place = place_of(object, attribute);
    return place != NULL && *place != NULL ? Py_NewRef(*place) : PyObject_GetAttr(object, attribute->name);
}

static int
set(PyObject *object, Attribute *attribute, PyObject *value)
{
    PyObject **place = place_of(object, attribute);
    if (place == NULL)
        return PyObject_SetAttr(object, attribute->name, value);
    PyObject *before = *place;
    *place = Py_NewRef(value);
    Py_XDECREF(before);
    return 0;
}

/* What each of them was made with begins with what its session gives it. */
enum { SESSION, BUFFERED, LONGEST, INVOKE, RESULT, PENDING, GRANTED, SENDING };

#define CONSTANT(name) PyTuple_GET_ITEM(constants, name)
#define HEAD(name) ((const unsigned char *)PyBytes_AS_STRING(CONSTANT(name)))

static PyObject *
make_shortcut(PyMethodDef *method, PyObject *constants, Py_ssize_t count)
{
    if (check_count(method->ml_name, PyTuple_GET_SIZE(constants), count) < 0)
        return NULL;
    if (count > RESULT && (!PyByteArray_Check(CONSTANT(BUFFERED)) || !PyLong_Check(CONSTANT(LONGEST)) ||
                           !PyBytes_Check(CONSTANT(INVOKE)) || check_start(PyBytes_GET_SIZE(CONSTANT(INVOKE))) < 0 ||
                           !PyBytes_Check(CONSTANT(RESULT)) || check_start(PyBytes_GET_SIZE(CONSTANT(RESULT))) < 0)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s() was made with something else than a session", method->ml_name);
        return NULL;
    }
    return PyCFunction_New(method, constants);
}

/* Whether an attribute is None, or -1. */
static int
is_none(PyObject *object, Attribute *attribute)
{
    PyObject *value = get(object, attribute);
    if (value == NULL)
        return -1;
    Py_DECREF(value);
    return value == Py_None;
}

static int
is_true(PyObject *value)
{
    Py_XDECREF(value);
    return value == NULL ? -1 : value == Py_True;
}

/* Clears the error that is being raised; -1 when it is one that nobody handles, as KeyboardInterrupt. */
static int
pass_over_error(void)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_Clear();
    return 0;
}

/* The error that is being raised, with its traceback, which is raised no more; a new reference. */
static PyObject *
take_error(void)
{
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback);
    PyErr_NormalizeException(&kind, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_DECREF(kind);
    Py_XDECREF(traceback);
    return error;
}

/* 0 when a call has returned something, else -1. */
static int
check_done(PyObject *returned)
{
    Py_XDECREF(returned);
    return returned == NULL ? -1 : 0;
}

/* The sequence number of the plain message in `data`, when the session is open and nothing else has begun to arrive; -1
 * when it is something else, -2 with an error.
 */
static long
seq_when_sole(PyObject *constants, PyObject *data, int head, const unsigned char *prefix, Py_ssize_t prefix_size)
{
    if (PyByteArray_GET_SIZE(CONSTANT(BUFFERED)) != 0)
        return -1;
    long seq = seq_of_sole(data, HEAD(head), prefix, prefix_size);
    if (seq < 0 || PyBytes_GET_SIZE(data) > PyLong_AsSsize_t(CONSTANT(LONGEST)))
        return -1;
    int is_open = is_none(CONSTANT(SESSION), &at_closed);
    return is_open > 0 ? seq : is_open - 1;
}

/* What `decode` makes of the bytes from `from` to `to`. */
static PyObject *
decode_part(PyObject *decode, PyObject *data, Py_ssize_t from, Py_ssize_t to)
{
    PyObject *part = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + from, to - from);
    if (part == NULL)
        return NULL;
    PyObject *value = PyObject_CallOneArg(decode, part);
    Py_DECREF(part);
    return value;
}

static int
write_to(PyObject *wire, PyObject *message)
{
    PyObject *write = get(wire, &at_write);
    if (write == NULL)
        return -1;
    int written = check_done(PyObject_CallOneArg(write, message));
    Py_DECREF(write);
    return written;
}

/* Wire.data_received */

enum { R_WIRE, R_SHORTCUT, R_COUNT };

static PyObject *
data_received(PyObject *constants, PyObject *data)
{
    int taken = is_true(PyObject_CallOneArg(CONSTANT(R_SHORTCUT), data));
    if (taken > 0)
        Py_RETURN_NONE;
    if (taken == 0)
        return PyObject_CallMethodOneArg(CONSTANT(R_WIRE), name_receive, data);
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyObject *error = take_error();
    PyObject *done = PyObject_CallMethodOneArg(CONSTANT(R_WIRE), name_fail, error);
    Py_DECREF(error);
    return done;
}

static PyMethodDef data_received_method = {"data_received", data_received, METH_O, NULL};

PyDoc_STRVAR(data_receiver_doc, "data_receiver(wire, shortcut, /)\n--\n\n"
                                "A function that does what workerlib.shell.transport.Wire.data_received does.");

static PyObject *
data_receiver(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&data_received_method, constants, R_COUNT);
}

/* ServerConnection's shortcut */

enum { A_CONNECTION = RESULT + 1, A_WIRE, A_LOOP, A_ENTER, A_LEAVE, A_MAY_BE_LARGE, A_COUNT };
enum { HOT_PREFIX, HOT_DECODE, HOT_CALLEE, HOT_METHOD, HOT_ENCODE, HOT_COUNT };

/* Whether the coroutine of a call has ended in its first step, with `value`, and all is as it was; if not, the task knows
 * how it goes on, or ended otherwise. -1 with an error when it was not run. As EagerTask.start.
 */
static int
start(PyObject *constants, PyObject *task, PyObject *coroutine, PyObject **value)
{
    PyObject *base = get(CONSTANT(A_CONNECTION), &at__base_context);
    if (base == NULL)
        return -1;
    PyObject *context = PyContext_Copy(base);
    Py_DECREF(base);
    if (context == NULL)
        return -1;
    PySendResult outcome = PYGEN_ERROR;
    int ran = -1;
    if (set(task, &at__coroutine, coroutine) == 0 && set(task, &at__context, context) == 0 &&
        PyContext_Enter(context) == 0) {
        ran = step(CONSTANT(A_ENTER), CONSTANT(A_LEAVE), CONSTANT(A_LOOP), task, coroutine, &outcome, value);
        if (PyContext_Exit(context) < 0)
            ran = -1;
    }
    Py_DECREF(context);
    if (ran < 0)
        return -1;
    if (outcome == PYGEN_ERROR) {
        PyObject *error = take_error();
        ran = check_done(PyObject_CallMethodObjArgs(task, name_end_at_once, Py_None, error, NULL));
        Py_DECREF(error);
        return ran;
    }
    if (outcome == PYGEN_NEXT)
        return check_done(PyObject_CallMethodOneArg(task, name_suspend, *value));
    int reusable = is_true(get(task, &at_reusable));
    if (reusable < 0)
        return -1;
    if (reusable == 0)
        return check_done(PyObject_CallMethodObjArgs(task, name_end_at_once, *value, Py_None, NULL));
    return set(task, &at__coroutine, Py_None) < 0 ? -1 : 1;
}

/* Whether the result was written; 0 when it is for Python to say what is wrong with it, or to write what may be long. */
static int
write_result(PyObject *constants, PyObject *encode, long seq, PyObject *value)
{
    int may_be_large = PySet_Contains(CONSTANT(A_MAY_BE_LARGE), (PyObject *)Py_TYPE(value));
    if (may_be_large != 0)
        return may_be_large < 0 ? -1 : 0;
    PyObject *payload = PyObject_CallOneArg(encode, value);
    if (payload == NULL)
        return pass_over_error();
    int written = 0;
    Py_ssize_t size;
    if (PyBytes_CheckExact(payload) &&
        (size = PyBytes_GET_SIZE(payload)) <= PyLong_AsSsize_t(CONSTANT(LONGEST)) - HEADER_SIZE) {
        PyObject *message = begin_message(HEAD(RESULT), seq, size, size);
        written = -1;
        if (message != NULL) {
            memcpy(PyBytes_AS_STRING(message) + HEADER_SIZE, PyBytes_AS_STRING(payload), (size_t)size);
            written = write_to(CONSTANT(A_WIRE), message) < 0 ? -1 : 1;
            Py_DECREF(message);
        }
    }
    Py_DECREF(payload);
    return written;
}

/* Runs a call, and answers it unless it goes on or has ended otherwise than most do. */
static int
run_call(PyObject *constants, PyObject *hot, PyObject *task, long seq, PyObject *args)
{
    PyObject *callee = PyTuple_GET_ITEM(hot, HOT_CALLEE), *connection = CONSTANT(A_CONNECTION);
    PyObject *coroutine = PyObject_Call(PyTuple_GET_ITEM(hot, HOT_METHOD), args, NULL);
    if (coroutine == NULL)
        return -1;
    PyObject *value = NULL;
    int answered = start(constants, task, coroutine, &value);
    Py_DECREF(coroutine);
    if (answered > 0) {
        answered = write_result(constants, PyTuple_GET_ITEM(hot, HOT_ENCODE), seq, value);
        if (answered == 0 && set(task, &at_value, value) < 0)
            answered = -1;
    }
    Py_XDECREF(value);
    if (answered < 0)
        return -1;
    if (answered > 0)
        return set(connection, &at__idle_task, task);
    PyObject *number = PyLong_FromLong(seq);
    if (number == NULL)
        return -1;
    answered = check_done(PyObject_CallMethodObjArgs(connection, name_answer_slowly, number, callee, task, NULL));
    Py_DECREF(number);
    return answered;
}

static int
count_call(PyObject *callee)
{
    PyObject *before = get(callee, &at_calls);
    if (before == NULL)
        return -1;
    PyObject *now = PyLong_FromLongLong(PyLong_AsLongLong(before) + 1);
    Py_DECREF(before);
    int counted = now == NULL ? -1 : set(callee, &at_calls, now);
    Py_XDECREF(now);
    return counted;
}

/* Whether `data` was one call of the hot function, which was run then. */
static int
answer_hot(PyObject *constants, PyObject *hot, PyObject *task, PyObject *data)
{
    PyObject *prefix = PyTuple_GET_ITEM(hot, HOT_PREFIX);
    Py_ssize_t named = PyBytes_GET_SIZE(prefix);
    long seq = seq_when_sole(constants, data, INVOKE, (const unsigned char *)PyBytes_AS_STRING(prefix), named);
    if (seq < 0)
        return seq == -1 ? 0 : -1;
    Py_ssize_t end = PyBytes_GET_SIZE(data) - 1;
    if (end < HEADER_SIZE + named || (unsigned char)PyBytes_AS_STRING(data)[end] != NO_KEYWORDS)
        return 0;
    PyObject *args = decode_part(PyTuple_GET_ITEM(hot, HOT_DECODE), data, HEADER_SIZE + named, end);
    if (args == NULL)
        return pass_over_error();  /* the long way tells what is wrong */
    int ran = -1;
    if (set(CONSTANT(SESSION), &at__heard, Py_True) == 0 &&
        set(CONSTANT(A_CONNECTION), &at__idle_task, Py_None) == 0 &&
        count_call(PyTuple_GET_ITEM(hot, HOT_CALLEE)) == 0)
        ran = run_call(constants, hot, task, seq, args);
    Py_DECREF(args);
    return ran < 0 ? -1 : 1;
}

static PyObject *
answer(PyObject *constants, PyObject *data)
{
    PyObject *hot = get(CONSTANT(A_CONNECTION), &at__hot);
    PyObject *task = get(CONSTANT(A_CONNECTION), &at__idle_task);
    int taken = -1;
    if (hot != NULL && task != NULL) {
        taken = 0;
        if (task != Py_None && PyTuple_Check(hot) && PyTuple_GET_SIZE(hot) == HOT_COUNT)
            taken = answer_hot(constants, hot, task, data);
    }
    Py_XDECREF(hot);
    Py_XDECREF(task);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyMethodDef answer_method = {"answer", answer, METH_O, NULL};

PyDoc_STRVAR(answerer_doc, "answerer(*constants)\n--\n\n"
                           "A function that does what workerlib.serving.ServerConnection's shortcut does.");

static PyObject *
answerer(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&answer_method, constants, A_COUNT);
}

/* Connection: making a call, and taking its result */

enum { C_WIRE = SENDING + 1, C_RUN, C_OUTGOING, C_REPLIES, C_YOUNG, C_WATCH, C_CREATE_FUTURE, C_ENCODE, C_COUNT };

/* The message of a call; NULL without an error when Python is to say what is wrong. */
static PyObject *
encode_call(PyObject *constants, long seq, PyObject *prefix, PyObject *args)
{
    PyObject *encoded = PyObject_CallOneArg(CONSTANT(C_ENCODE), args);
    if (encoded == NULL) {
        pass_over_error();
        return NULL;
    }
    PyObject *message = NULL;
    Py_ssize_t named = PyBytes_GET_SIZE(prefix), size = named + PyObject_Size(encoded) + 1;
    if (PyBytes_CheckExact(encoded) && size <= PyLong_AsSsize_t(CONSTANT(LONGEST)) - HEADER_SIZE &&
        (message = begin_message(HEAD(INVOKE), seq, size, size)) != NULL) {
        char *to = PyBytes_AS_STRING(message) + HEADER_SIZE;
        memcpy(to, PyBytes_AS_STRING(prefix), (size_t)named);
        memcpy(to + named, PyBytes_AS_STRING(encoded), (size_t)(size - named - 1));
        to[size - 1] = (char)NO_KEYWORDS;
    }
    Py_DECREF(encoded);
    return message;
}

/* Notes a call that is about to be written; -1 with an error. */
static int
expect_reply(PyObject *constants, long seq, PyObject *number, PyObject *future, PyObject *outgoing)
{
    PyObject *replies = CONSTANT(C_REPLIES), *young = CONSTANT(C_YOUNG);
    if (PySet_Add(CONSTANT(PENDING), number) < 0 || set(CONSTANT(SESSION), &at__seq, number) < 0)
        return -1;
    if (PyDict_GET_SIZE(replies) > 0) {
        PyObject *before = PyLong_FromLong(seq - 1);
        int waits = before == NULL ? -1 : PyDict_Contains(replies, before);
        Py_XDECREF(before);
        if (waits < 0 || (waits > 0 && check_done(PyObject_CallMethodNoArgs(CONSTANT(C_WIRE), name_write_together)) < 0))
            return -1;
    }
    PyObject *name = get(outgoing, &at_name);
    PyObject *reply = name == NULL ? NULL : PyTuple_Pack(3, future, outgoing, name);
    Py_XDECREF(name);
    if (reply == NULL)
        return -1;
    int noted = PyDict_SetItem(replies, number, reply);
    Py_DECREF(reply);
    if (noted < 0 || (PyList_GET_SIZE(young) == 0 && check_done(PyObject_CallNoArgs(CONSTANT(C_WATCH))) < 0))
        return -1;
    return PyList_Append(young, number);
}

/* The future of a call that was written; NULL without an error when nothing was done. */
static PyObject *
call(PyObject *constants, PyObject *outgoing, PyObject *args)
{
    PyObject *last = get(CONSTANT(SESSION), &at__seq);
    if (last == NULL)
        return NULL;
    long seq = PyLong_AsLong(last) % MAX_SEQ + 1;
    Py_DECREF(last);
    PyObject *number = PyLong_FromLong(seq), *prefix = get(outgoing, &at_prefix), *message = NULL, *future = NULL;
    if (number != NULL && prefix != NULL && PyBytes_CheckExact(prefix) &&
        PySet_Contains(CONSTANT(PENDING), number) == 0 && is_none(CONSTANT(SESSION), &at_closed) > 0)
        message = encode_call(constants, seq, prefix, args);
    if (message != NULL && (future = PyObject_CallNoArgs(CONSTANT(C_CREATE_FUTURE))) != NULL &&
        (expect_reply(constants, seq, number, future, outgoing) < 0 || write_to(CONSTANT(C_WIRE), message) < 0))
        Py_CLEAR(future);
    Py_XDECREF(message);
    Py_XDECREF(prefix);
    Py_XDECREF(number);
    return future;
}

/* The future of a call without arguments by keyword; NULL without an error when it is for Python to make. */
static PyObject *
run_plainly(PyObject *constants, PyObject *const *args, Py_ssize_t count)
{
    PyObject *outgoing = PyDict_GetItemWithError(CONSTANT(C_OUTGOING), args[0]);
    if (outgoing == NULL)
        return NULL;
    Py_INCREF(outgoing);
    PyObject *future = NULL, *values;
    if (is_true(get(outgoing, &at_is_plain)) > 0 && (values = PyTuple_New(count - 1)) != NULL) {
        for (Py_ssize_t n = 1; n < count; n++)
            PyTuple_SET_ITEM(values, n - 1, Py_NewRef(args[n]));
        future = call(constants, outgoing, values);
        Py_DECREF(values);
    }
    Py_DECREF(outgoing);
    return future;
}

static PyObject *
run(PyObject *constants, PyObject *const *args, Py_ssize_t count, PyObject *keywords)
{
    if (count > 0 && keywords == NULL) {
        PyObject *future = run_plainly(constants, args, count);
        if (future != NULL || PyErr_Occurred())
            return future;
    }
    return PyObject_Vectorcall(CONSTANT(C_RUN), args, (size_t)count, keywords);
}

static PyMethodDef run_method = {
    "run", (PyCFunction)(void (*)(void))run, METH_FASTCALL | METH_KEYWORDS,
    "run($self, function, /, *args, **kwargs)\n--\n\nSee workerlib.Connection.run.",
};

PyDoc_STRVAR(runner_doc, "runner(*constants)\n--\n\n"
                         "A function that does what workerlib.connection.Connection.run does.");

static PyObject *
runner(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&run_method, constants, C_COUNT);
}

enum { T_REPLIES = SENDING + 1, T_COUNT };
enum { REPLY_FUTURE, REPLY_OUTGOING };

/* Gives a future what `one` of the results makes of the payload of `data`, or its error. */
static int
settle(PyObject *future, PyObject *results, PyObject *data)
{
    int is_done = is_true(PyObject_CallMethodNoArgs(future, name_done));
    if (is_done != 0)
        return is_done < 0 ? -1 : 0;
    PyObject *decode = get(results, &at_one);
    if (decode == NULL)
        return -1;
    PyObject *value = decode_part(decode, data, HEADER_SIZE, PyBytes_GET_SIZE(data)), *tell = name_set_result;
    Py_DECREF(decode);
    if (value == NULL) {  /* the types' own checks are user code */
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return -1;
        PyObject *error = take_error();
        value = PyObject_CallMethodOneArg(results, name_error, error);
        tell = name_set_exception;
        Py_DECREF(error);
        if (value == NULL)
            return -1;
    }
    int settled = check_done(PyObject_CallMethodOneArg(future, tell, value));
    Py_DECREF(value);
    return settled;
}

/* Whether `data` is the plain result of the call with that number, which was given to who waits for it then. */
static int
take_reply(PyObject *constants, PyObject *number, PyObject *data)
{
    PyObject *reply = PyDict_GetItemWithError(CONSTANT(T_REPLIES), number);
    if (reply == NULL || PyTuple_GET_ITEM(reply, REPLY_OUTGOING) == Py_None)
        return PyErr_Occurred() ? -1 : 0;
    int waits = PySet_Contains(CONSTANT(PENDING), number), is_stream = PyDict_Contains(CONSTANT(GRANTED), number),
        sends_items = PyDict_Contains(CONSTANT(SENDING), number);
    if (waits < 0 || is_stream < 0 || sends_items < 0)
        return -1;
    if (!waits || is_stream || sends_items)
        return 0;
    Py_INCREF(reply);
    int taken = -1;
    if (PySet_Discard(CONSTANT(PENDING), number) >= 0 && PyDict_DelItem(CONSTANT(T_REPLIES), number) == 0 &&
        set(CONSTANT(SESSION), &at__heard, Py_True) == 0) {
        PyObject *results = get(PyTuple_GET_ITEM(reply, REPLY_OUTGOING), &at_results);
        taken = results == NULL || settle(PyTuple_GET_ITEM(reply, REPLY_FUTURE), results, data) < 0 ? -1 : 1;
        Py_XDECREF(results);
    }
    Py_DECREF(reply);
    return taken;
}

static PyObject *
take_result(PyObject *constants, PyObject *data)
{
    long seq = seq_when_sole(constants, data, RESULT, (const unsigned char *)"", 0);
    if (seq == -2)
        return NULL;
    PyObject *number;
    if (seq < 0 || (number = PyLong_FromLong(seq)) == NULL)
        return seq < 0 ? Py_NewRef(Py_False) : NULL;
    int taken = take_reply(constants, number, data);
    Py_DECREF(number);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyMethodDef take_result_method = {"take_result", take_result, METH_O, NULL};

PyDoc_STRVAR(result_taker_doc, "result_taker(*constants)\n--\n\n"
                               "A function that does what workerlib.connection.Connection's shortcut does.");

static PyObject *
result_taker(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&take_result_method, constants, T_COUNT);
}

static PyMethodDef functions[] = {
    {"encode_plain", (PyCFunction)(void (*)(void))encode_plain, METH_FASTCALL, encode_plain_doc},
    {"sole_plain", (PyCFunction)(void (*)(void))sole_plain, METH_FASTCALL, sole_plain_doc},
    {"unfilled", unfilled, METH_O, unfilled_doc},
    {"bind", (PyCFunction)(void (*)(void))bind, METH_FASTCALL, bind_doc},
    {"first_step", (PyCFunction)(void (*)(void))first_step, METH_FASTCALL, first_step_doc},
    {"data_receiver", data_receiver, METH_VARARGS, data_receiver_doc},
    {"answerer", answerer, METH_VARARGS, answerer_doc},
    {"runner", runner, METH_VARARGS, runner_doc},
    {"result_taker", result_taker, METH_VARARGS, result_taker_doc},
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
