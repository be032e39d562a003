"""The text of a program around its body: what XLA calls, and how XLA's threads share out the pieces of the work.

The layout of XLA's structures is that of its C interface (xla/ffi/api/c_api.h), which jaxlib carries as a header.
"""

from collections.abc import Callable

from unimix_jax.cpu_kernels import processor
from unimix_jax.cpu_kernels.assembly import Code


def handler(write: Callable[..., int], options: tuple, name: str, dtype: str, workers: int) -> tuple[str, str]:
    """Write a program that XLA can call.

    Args:
      write: called as write(code, *options); it writes the body, and returns the number of pieces of the work.
      options: what tells this program from others that `write` writes, such as shapes.
      name: of the program, which a profile displays.
      dtype: "float32" or "float64".
      workers: threads that may take pieces at the same time.

    Returns:
      The full name of the program, and its text.
    """
    code = Code(dtype)
    pieces = write(code, *options)
    parts = {
        "workers": min(workers, pieces),
        "pieces": pieces,
        "body": "\n".join(code.lines),
        "vector": code.vector,
        "fma": f"@llvm.fma.v{code.lanes}f{8 * code.bytes}",
        "major": INTERFACE[0],
        "minor": INTERFACE[1],
    }
    # The digest of the text is part of the name, because XLA's own compile cache keeps the name: a function from the
    # cache then calls the program that it was compiled with, not another version of it.
    name = f"unimix_{name}_{dtype}_{processor.digest(_HANDLER.format(name='', **parts))[:8]}"
    return name, _HANDLER.format(name=name, **parts)


# The version of XLA's interface (XLA_FFI_API_MAJOR and _MINOR in xla/ffi/api/c_api.h) for which programs are written.
# Its offsets: XLA_FFI_CallFrame (extension 8, api 16, context 24, arguments 72, results 112), XLA_FFI_Api
# (Error_Destroy 64, ThreadPool_Schedule 136), XLA_FFI_Metadata_Extension (type 8, metadata 24) and XLA_FFI_Metadata
# (version 24).
INTERFACE = 0, 3
_HANDLER = """
%State = type {{ i64, i64, i64, i64, ptr, ptr }}  ; pieces taken, pieces done, workers come, workers left, out, in

define ptr @{name}(ptr %frame) {{
  %extension.at = getelementptr i8, ptr %frame, i64 8
  %extension = load ptr, ptr %extension.at
  %api.at = getelementptr i8, ptr %frame, i64 16
  %api = load ptr, ptr %api.at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %which, label %run

which:
  %type.at = getelementptr i8, ptr %extension, i64 8
  %type = load i32, ptr %type.at
  %asked = icmp eq i32 %type, 1
  br i1 %asked, label %describe, label %run

describe:  ; XLA asks for which version of its interface this is written, and refuses one that it does not speak
  %metadata.at = getelementptr i8, ptr %extension, i64 24
  %metadata = load ptr, ptr %metadata.at
  %answer = getelementptr i8, ptr %metadata, i64 24
  store {{ i32, i32 }} {{ i32 {major}, i32 {minor} }}, ptr %answer
  ret ptr null

run:
  %state = call ptr @malloc(i64 48)  ; not on the stack: a worker that comes late looks at it, too
  call void @llvm.memset.p0.i64(ptr %state, i8 0, i64 24, i1 0)
  %left = getelementptr %State, ptr %state, i32 0, i32 3
  store i64 {workers}, ptr %left
  %out.at = getelementptr i8, ptr %frame, i64 112
  %out = load ptr, ptr %out.at
  %out.to = getelementptr %State, ptr %state, i32 0, i32 4
  store ptr %out, ptr %out.to
  %in.at = getelementptr i8, ptr %frame, i64 72
  %in = load ptr, ptr %in.at
  %in.to = getelementptr %State, ptr %state, i32 0, i32 5
  store ptr %in, ptr %in.to
  %context.at = getelementptr i8, ptr %frame, i64 24
  %context = load ptr, ptr %context.at
  %schedule.at = getelementptr i8, ptr %api, i64 136
  %schedule = load ptr, ptr %schedule.at
  %order = alloca {{ i64, ptr, ptr, ptr, ptr }}
  %refusal = alloca {{ i64, ptr, ptr }}
  store {{ i64, ptr, ptr, ptr, ptr }} {{ i64 40, ptr null, ptr null, ptr @work, ptr null }}, ptr %order
  %order.context = getelementptr i8, ptr %order, i64 16
  store ptr %context, ptr %order.context
  %order.data = getelementptr i8, ptr %order, i64 32
  store ptr %state, ptr %order.data
  br label %call

call:  ; this thread is the first worker
  %called = phi i64 [ 1, %run ], [ %called.next, %calling ], [ %called.next, %fewer ]
  %enough = icmp sge i64 %called, {workers}
  br i1 %enough, label %mine, label %calling

calling:
  %error = call ptr %schedule(ptr %order)
  %called.next = add i64 %called, 1
  %refused = icmp ne ptr %error, null
  br i1 %refused, label %fewer, label %call

fewer:
  %forget.at = getelementptr i8, ptr %api, i64 64
  %forget = load ptr, ptr %forget.at
  store {{ i64, ptr, ptr }} {{ i64 24, ptr null, ptr null }}, ptr %refusal
  %refusal.error = getelementptr i8, ptr %refusal, i64 16
  store ptr %error, ptr %refusal.error
  call void %forget(ptr %refusal)
  call void @leave(ptr %state)
  br label %call

mine:
  call void @take(ptr %state)
  %done = getelementptr %State, ptr %state, i32 0, i32 1
  br label %wait

wait:  ; for pieces that others have begun, never for a worker that has not come
  %turns = phi i64 [ 0, %mine ], [ %turns.next, %pause ], [ %turns.next, %yield ]
  %count = load atomic i64, ptr %done acquire, align 8
  %ready = icmp eq i64 %count, {pieces}
  br i1 %ready, label %end, label %again

again:
  %turns.next = add i64 %turns, 1
  %short = icmp slt i64 %turns, 200  ; some microseconds, before this core is offered to whoever has the piece
  br i1 %short, label %pause, label %yield

pause:
  call void @llvm.x86.sse2.pause()
  br label %wait

yield:
  call i32 @sched_yield()
  br label %wait

end:
  call void @leave(ptr %state)
  ret ptr null
}}

define internal void @work(ptr %state) {{
  call void @take(ptr %state)
  call void @leave(ptr %state)
  ret void
}}

define internal void @leave(ptr %state) {{
  %left = getelementptr %State, ptr %state, i32 0, i32 3
  %before = atomicrmw sub ptr %left, i64 1 acq_rel
  %last = icmp eq i64 %before, 1
  br i1 %last, label %free, label %end

free:
  call void @free(ptr %state)
  br label %end

end:
  ret void
}}

define internal void @take(ptr %state) {{
  %come = getelementptr %State, ptr %state, i32 0, i32 2
  %worker = atomicrmw add ptr %come, i64 1 acq_rel
  %done = getelementptr %State, ptr %state, i32 0, i32 1
  %out.at = getelementptr %State, ptr %state, i32 0, i32 4
  %in.at = getelementptr %State, ptr %state, i32 0, i32 5
  %out = load ptr, ptr %out.at
  %in = load ptr, ptr %in.at
  br label %next

next:
  %piece = atomicrmw add ptr %state, i64 1 acq_rel
  %more = icmp slt i64 %piece, {pieces}
  br i1 %more, label %do, label %end

do:
  call void @piece(ptr %out, ptr %in, i64 %piece, i64 %worker)
  atomicrmw add ptr %done, i64 1 acq_rel
  br label %next

end:
  ret void
}}

define internal void @piece(ptr %out, ptr %in, i64 %piece, i64 %worker) {{
{body}
  ret void
}}

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
declare void @llvm.x86.sse2.pause()
declare {vector} {fma}({vector}, {vector}, {vector})
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
