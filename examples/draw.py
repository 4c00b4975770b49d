"""Draw what workflows are on the wire, from expressions with the tasks a to h. In the folder above this one:

    python -m examples.draw 'chain(a, b)' 'chain(a, group(b, c), d)'

draws the messages that are sent at once, and what is inside of them. With `--size` in front, it says how big they are.
"""

import sys
from collections.abc import Sequence

from asyncqueue import Server, Signature, chain, chord, group
from asyncqueue.compiling import compiled
from asyncqueue.wire import encode_plan, encode_signature
from asyncqueue.workflow import Compiled, Node, tasks_in

server = Server("memory://")


async def task(*given: str) -> str:
    return " ".join(given)


TASKS = {name: server.register_task(name, task) for name in "abcdefgh"}
WORDS = {**TASKS, "chain": chain, "chord": chord, "group": group}


def main(words: Sequence[str]) -> None:
    if words[0] == "--size":
        for expression in words[1:]:
            print(f"{expression}: {size(sent(expression))}")
        return
    for expression in words:
        print(expression)
        Drawing(sent(expression)).show()


def sent(expression: str) -> Compiled:
    """What `server.send` would send. The expression is Python: give it none that you have not read."""
    work: Node = eval(expression, dict(WORDS))
    return compiled(work, default_queue="queue")


def size(work: Compiled) -> str:
    tasks = len(tasks_in(work.entries, work.plans))
    messages = [len(encode_signature(entry)) for entry in work.entries]
    plans = sum(len(encode_plan(plan)) for plan in work.plans)
    text = f"{tasks} tasks, messages: {len(messages)}, the largest {max(messages) / 1000:.1f} kB"
    return f"{text}, plans: {len(work.plans)}, together {plans / 1000:.0f} kB" if plans else text


class Drawing:
    """Everything once: on the wire, each member of a group carries its callback."""

    def __init__(self, work: Compiled) -> None:
        self.work = work
        self.plans = {plan.plan_id: f"plan {number}" for number, plan in enumerate(work.plans, start=1)}
        self.groups: dict[str, str] = {}

    def show(self) -> None:
        for entry in self.work.entries:
            self.line(entry)
        for plan in self.work.plans:
            print(f"  {self.plans[plan.plan_id]}:")
            for entry in plan.signatures:
                self.line(entry, depth=2)

    def line(self, each: Signature, field: str = "", depth: int = 1) -> None:
        is_drawn = each.group_uuid in self.groups
        if each.group_uuid and not is_drawn:
            self.groups[each.group_uuid] = f"group {len(self.groups) + 1}"
        print("  " * depth + field + " · ".join(self.facts(each)))
        if each.chord_callback is not None and not is_drawn:
            self.line(each.chord_callback, "ChordCallback: ", depth + 1)
        for after in each.on_success or ():
            self.line(after, "OnSuccess: ", depth + 1)

    def facts(self, each: Signature) -> list[str]:
        facts = [each.name]
        if each.immutable:
            facts.append("Immutable")
        if each.group_uuid:
            facts.append(f"in {self.groups[each.group_uuid]} of {each.group_task_count}")
        named = {**self.plans, **self.groups}
        headers = {name: value for name, value in (each.headers or {}).items() if name != "aq-workflow"}  # all have it
        return facts + [f"{name}: {named.get(str(value), value)}" for name, value in headers.items()]


if __name__ == "__main__":
    main(sys.argv[1:])
