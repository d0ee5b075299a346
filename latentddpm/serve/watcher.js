// Watcher: asks the server what this browser's drawings and pictures look like now.
//
// It asks often while something is drawn and now and then else. A page that was loaded again, or
// that lost its connection, goes on with the next answer.

const OFTEN = 250, SELDOM = 1000, LOST = 3000; // milliseconds
const live = element.querySelector(".now"), gallery = element.querySelector(".kept");
let shown = null, have = "";

async function look() {
  let wait = SELDOM;
  try {
    const answer = await fetch(`api/view?have=${have}`);
    if (answer.status === 401) return location.reload(); // the server has another token now
    const view = await answer.json();
    if (view.live !== shown) live.innerHTML = shown = view.live;
    if (view.have !== have) [gallery.innerHTML, have] = [view.gallery, view.have];
    if (view.active) wait = OFTEN;
  } catch {
    shown = null;
    live.textContent = "The server does not answer; asking again.";
    wait = LOST;
  }
  setTimeout(look, document.hidden ? Math.max(wait, LOST) : wait);
}
look();
