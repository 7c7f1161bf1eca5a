"""The list of a person's conversations as HTML, with the script that lets them open, rename and delete. No store."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.ui.markup import action
from storage.records import ConversationInfo

UNTITLED = "New conversation"

ON_CLICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (!button) return;
  if (button.dataset.act === 'unfold') { element.toggleAttribute('data-unfolded'); return; }
  const id = Number(button.dataset.id);
  if (button.dataset.act === 'rename') { rename(button.closest('li'), id); return; }
  if (button.dataset.sure && !button.classList.contains('sure')) {
    button.classList.add('sure');
    button.textContent = button.dataset.sure;
    setTimeout(() => { button.classList.remove('sure'); button.textContent = '✕'; }, 3000);
    return;
  }
  element.removeAttribute('data-unfolded');
  trigger('click', {act: button.dataset.act, id: id});
});
function rename(item, id) {
  const title = item.querySelector('.title');
  const field = document.createElement('input');
  field.value = title.textContent;
  field.maxLength = 60;
  field.setAttribute('aria-label', 'Title of the conversation');
  let done = false;
  const finish = (keep) => {
    if (done) return;
    done = true;
    field.replaceWith(title);
    if (keep && field.value.trim()) trigger('click', {act: 'rename', id: id, title: field.value});
  };
  field.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') finish(true);
    if (event.key === 'Escape') finish(false);
  });
  field.addEventListener('blur', () => finish(true));
  title.replaceWith(field);
  field.select();
}
"""


def history(conversations: Sequence[ConversationInfo], current: int | None) -> str:
    """Return the list, newest first, with the open conversation marked."""
    items = "".join(_item(info, info.id == current) for info in conversations)
    body = f"<ul>{items}</ul>" if items else '<p class="quiet">Your conversations will be listed here.</p>'
    unfold = '<button type="button" class="act unfold" data-act="unfold">Conversations</button>'
    return f'<div class="history">{unfold}<nav aria-label="Conversations">{body}</nav></div>'


def _item(info: ConversationInfo, is_open: bool) -> str:
    title = escape(info.title or UNTITLED)
    mark = ' aria-current="true"' if is_open else ""
    return (
        f'<li class="{"open" if is_open else ""}"><button type="button" class="title" data-act="open"'
        f' data-id="{info.id}" title="{title}"{mark}>{title}</button>'
        f"{action('rename', info.id, '✎', kind='icon', title='Rename')}"
        f"{action('delete', info.id, '✕', kind='icon', sure='Delete?', title='Delete')}</li>"
    )
