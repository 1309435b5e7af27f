/* The shortcuts: a call of the common kind goes through them and not through what they stand for in Python, at both ends.
 *
 * Measured with `make bench` and tests/benchmarks/call_path.py: between two processes that wait for each other the frames
 * of Python between the loop and msgspec cost twice what they do in a loop of their own, for the caches are cold after
 * each switch. A call takes less than 1.8 times as long as its bytes on a bare socket, and 2.3 times without this.
 *
 * Each shortcut is a function made with what it needs for as long as its connection lives, a tuple that it has as `self`.
 * What changes meanwhile it looks up by name: these names are the whole of what the two languages know of each other.
 * It takes a call whole, or says before it has changed anything that the long way must be gone, or hands over to Python
 * what it has begun.
 */

#include "_speedups.h"

#include <stdint.h>
#include <string.h>
#include <structmember.h>

#define NO_KEYWORDS 0x80  /* MessagePack's empty map */
#define MAX_SEQ 0xFFFF

/* An attribute of objects of ours. Where its class declares it in __slots__ it is read and written in its place, else as
 * by Python; the first class that is met is the one for which the place is kept.
 */
typedef struct {
    PyObject *name;
    PyTypeObject *owner;
    Py_ssize_t offset;
} Attribute;

#define ATTRIBUTES(X) X(closed) X(_heard) X(_seq) X(write) X(_hot) X(_idle_task) X(_base_context) X(calls) X(_coroutine) \
                      X(_context) X(reusable) X(value) X(is_plain) X(prefix) X(name) X(results) X(one) X(_will_look)
#define METHODS(X) X(write_together) X(look_soon) X(receive) X(fail) X(answer_slowly) X(suspend) X(end_at_once) \
                   X(error) X(set_exception)
#define DECLARE_ATTRIBUTE(of) static Attribute at_##of;
ATTRIBUTES(DECLARE_ATTRIBUTE)
#define DECLARE_METHOD(of) static PyObject *name_##of;
METHODS(DECLARE_METHOD)

int
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
#define OF_SESSION ".aihh"
#define OF_CLIENT_SESSION OF_SESSION "sdd"

#define CONSTANT(name) PyTuple_GET_ITEM(constants, name)
#define HEAD(name) ((const unsigned char *)PyBytes_AS_STRING(CONSTANT(name)))

/* What the constants are, as their kinds say; they are not looked at again. */
static int
is_of_kind(PyObject *constant, char kind)
{
    switch (kind) {
    case 'a':
        return PyByteArray_Check(constant);
    case 'd':
        return PyDict_Check(constant);
    case 'h':
        return PyBytes_Check(constant) && PyBytes_GET_SIZE(constant) == START_SIZE;
    case 'i':
        return PyLong_Check(constant) && PyLong_AsSsize_t(constant) > HEADER_SIZE;
    case 's':
        return PyAnySet_Check(constant);
    default:
        return 1;
    }
}

static PyObject *
make_shortcut(PyMethodDef *method, PyObject *constants, const char *kinds)
{
    if (check_count(method->ml_name, PyTuple_GET_SIZE(constants), (Py_ssize_t)strlen(kinds)) < 0)
        return NULL;
    for (Py_ssize_t n = 0; kinds[n] != '\0'; n++) {
        if (!is_of_kind(CONSTANT(n), kinds[n])) {
            PyErr_Format(PyExc_TypeError, "%s() was made with something else as its constant %zd", method->ml_name, n);
            return NULL;
        }
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

enum { R_WIRE, R_SHORTCUT };

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

PyObject *
data_receiver(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&data_received_method, constants, "..");
}

/* ServerConnection's shortcut */

enum { A_CONNECTION = RESULT + 1, A_WIRE, A_LOOP, A_ENTER, A_LEAVE, A_MAY_BE_LARGE };
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
        if (task != Py_None && PyTuple_Check(hot) && PyTuple_GET_SIZE(hot) == HOT_COUNT &&
            PyBytes_CheckExact(PyTuple_GET_ITEM(hot, HOT_PREFIX)))
            taken = answer_hot(constants, hot, task, data);
    }
    Py_XDECREF(hot);
    Py_XDECREF(task);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyMethodDef answer_method = {"answer", answer, METH_O, NULL};

PyObject *
answerer(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&answer_method, constants, OF_SESSION ".....s");
}

/* Connection: making a call, and taking its result */

enum { REPLIES = SENDING + 1 };
enum { C_CONNECTION = REPLIES + 1, C_WIRE, C_RUN, C_OUTGOING, C_MAKE_FUTURE, C_FOR_LOOP, C_ENCODE };

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
    PyObject *replies = CONSTANT(REPLIES), *connection = CONSTANT(C_CONNECTION);
    if (PyDict_GET_SIZE(replies) > 0) {
        PyObject *before = PyLong_FromLong(seq - 1);
        int waits = before == NULL ? -1 : PyDict_Contains(replies, before);
        Py_XDECREF(before);
        if (waits < 0 || (waits > 0 && check_done(PyObject_CallMethodNoArgs(CONSTANT(C_WIRE), name_write_together)) < 0))
            return -1;
    }
    PyObject *name = get(outgoing, &at_name);
    PyObject *reply = name == NULL ? NULL : PyTuple_Pack(4, future, outgoing, name, Py_False);
    Py_XDECREF(name);
    if (reply == NULL)
        return -1;
    int noted = PyDict_SetItem(replies, number, reply);
    Py_DECREF(reply);
    if (noted < 0 || set(CONSTANT(SESSION), &at__seq, number) < 0)
        return -1;
    int will_not_look = is_none(connection, &at__will_look);
    return will_not_look <= 0 ? will_not_look : check_done(PyObject_CallMethodNoArgs(connection, name_look_soon));
}

static PyObject *
make_future(PyObject *constants)
{
    PyObject *nothing = PyTuple_New(0);
    PyObject *future = nothing == NULL ? NULL : PyObject_Call(CONSTANT(C_MAKE_FUTURE), nothing, CONSTANT(C_FOR_LOOP));
    Py_XDECREF(nothing);
    return future;
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
    if (number != NULL && prefix != NULL && PyBytes_CheckExact(prefix))
        message = encode_call(constants, seq, prefix, args);
    Py_ssize_t before = PySet_GET_SIZE(CONSTANT(PENDING));
    /* Whether it is open is asked after the encoding, which may be code of the types' own that ends it. */
    if (message != NULL && is_none(CONSTANT(SESSION), &at_closed) > 0 && PySet_Add(CONSTANT(PENDING), number) == 0 &&
        PySet_GET_SIZE(CONSTANT(PENDING)) > before &&  /* the number was free */
        (future = make_future(constants)) != NULL &&
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

PyObject *
runner(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&run_method, constants, OF_CLIENT_SESSION "d...d.d.");
}

enum { T_DONE = REPLIES + 1, T_SET_RESULT };
enum { REPLY_FUTURE, REPLY_OUTGOING };

static int
is_done(PyObject *constants, PyObject *future)
{
    return is_true(PyObject_CallOneArg(CONSTANT(T_DONE), future));
}

/* Gives a future what the results make of the payload of `data`, or their error. */
static int
settle(PyObject *constants, PyObject *future, PyObject *results, PyObject *data)
{
    int ended = is_done(constants, future);
    if (ended != 0)
        return ended < 0 ? -1 : 0;
    PyObject *decode = get(results, &at_one);
    if (decode == NULL)
        return -1;
    PyObject *value = decode_part(decode, data, HEADER_SIZE, PyBytes_GET_SIZE(data)), *refusal = NULL;
    Py_DECREF(decode);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {  /* the types' own checks are user code */
        PyObject *error = take_error();
        refusal = PyObject_CallMethodOneArg(results, name_error, error);
        Py_DECREF(error);
    }
    if (value == NULL && refusal == NULL)
        return -1;
    ended = is_done(constants, future);  /* by what made this of the answer, the caller's own code */
    if (ended == 0) {
        PyObject *future_and_value[] = {future, value};
        ended = check_done(value != NULL ? PyObject_Vectorcall(CONSTANT(T_SET_RESULT), future_and_value, 2, NULL)
                                         : PyObject_CallMethodOneArg(future, name_set_exception, refusal));
    }
    Py_XDECREF(value);
    Py_XDECREF(refusal);
    return ended < 0 ? -1 : 0;
}

static int
has(PyObject *dict, PyObject *key)
{
    return PyDict_GET_SIZE(dict) == 0 ? 0 : PyDict_Contains(dict, key);
}

/* Whether `data` is the plain result of the call with that number, which was given to who waits for it then. */
static int
take_reply(PyObject *constants, PyObject *number, PyObject *data)
{
    PyObject *reply = PyDict_GetItemWithError(CONSTANT(REPLIES), number);
    if (reply == NULL || PyTuple_GET_ITEM(reply, REPLY_OUTGOING) == Py_None)
        return PyErr_Occurred() ? -1 : 0;
    int streams = has(CONSTANT(GRANTED), number) | has(CONSTANT(SENDING), number);
    int waits = streams != 0 ? 0 : PySet_Discard(CONSTANT(PENDING), number);
    if (waits <= 0)
        return streams < 0 ? -1 : waits;
    Py_INCREF(reply);
    PyObject *results = NULL;
    int taken = -1;
    if (set(CONSTANT(SESSION), &at__heard, Py_True) == 0 &&
        (results = get(PyTuple_GET_ITEM(reply, REPLY_OUTGOING), &at_results)) != NULL &&
        settle(constants, PyTuple_GET_ITEM(reply, REPLY_FUTURE), results, data) == 0)
        /* after it was told: whoever is still there when the connection ends is told by that */
        taken = has(CONSTANT(REPLIES), number) > 0 && PyDict_DelItem(CONSTANT(REPLIES), number) < 0 ? -1 : 1;
    Py_XDECREF(results);
    Py_DECREF(reply);
    return taken;
}

static PyObject *
take_result(PyObject *constants, PyObject *data)
{
    long seq = seq_when_sole(constants, data, RESULT, (const unsigned char *)"", 0);
    PyObject *number = seq < 0 ? NULL : PyLong_FromLong(seq);
    if (number == NULL)
        return seq == -1 ? Py_NewRef(Py_False) : NULL;
    int taken = take_reply(constants, number, data);
    Py_DECREF(number);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyMethodDef take_result_method = {"take_result", take_result, METH_O, NULL};

PyObject *
result_taker(PyObject *Py_UNUSED(module), PyObject *constants)
{
    return make_shortcut(&take_result_method, constants, OF_CLIENT_SESSION "d..");
}

