// Painter: a picture to start from, and a mask painted over it, in a plain canvas.
//
// Its value is JSON, {"init_image": data URL, "mask": data URL or null}, or "" without a picture.
// White of the mask is drawn anew. Nothing leaves the browser before Draw is pressed.

const MOST = 2048; // pixels along a side; a larger picture is scaled down
const PAINT = "rgba(84, 72, 240, 0.62)";

const part = (selector) => element.querySelector(selector);
const file = part("input[type=file]"), size = part("input[type=range]");
const canvas = part("canvas"), shown = canvas.getContext("2d");
const mask = document.createElement("canvas");
const paint = mask.getContext("2d", { willReadFrequently: true });
let picture = null, source = "", erasing = false, last = null;

function show() {
  if (!picture) return;
  shown.clearRect(0, 0, canvas.width, canvas.height);
  shown.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const tint = document.createElement("canvas");
  [tint.width, tint.height] = [mask.width, mask.height];
  const brush = tint.getContext("2d");
  brush.drawImage(mask, 0, 0);
  brush.globalCompositeOperation = "source-in";
  brush.fillStyle = PAINT;
  brush.fillRect(0, 0, tint.width, tint.height);
  shown.drawImage(tint, 0, 0);
}

function painted() {
  const values = paint.getImageData(0, 0, mask.width, mask.height).data;
  for (let k = 3; k < values.length; k += 4) if (values[k] > 127) return true;
  return false;
}

function tell() {
  if (!picture) {
    props.value = "";
    return;
  }
  let white = null;
  if (painted()) {
    const whole = document.createElement("canvas");
    [whole.width, whole.height] = [mask.width, mask.height];
    const flat = whole.getContext("2d");
    flat.fillRect(0, 0, whole.width, whole.height);
    flat.drawImage(mask, 0, 0);
    white = whole.toDataURL("image/png");
  }
  props.value = JSON.stringify({ init_image: source, mask: white });
}

function put(blob) {
  if (!blob || !blob.type.startsWith("image/")) return;
  const reader = new FileReader();
  reader.onload = () => {
    const image = new Image();
    image.onload = () => {
      const scale = Math.min(1, MOST / Math.max(image.naturalWidth, image.naturalHeight));
      for (const one of [canvas, mask]) {
        one.width = Math.round(image.naturalWidth * scale);
        one.height = Math.round(image.naturalHeight * scale);
      }
      [picture, source] = [image, reader.result];
      show();
      if (scale < 1) source = canvas.toDataURL("image/png");
      part(".paint").hidden = false;
      part(".put").hidden = true;
      tell();
    };
    image.src = reader.result;
  };
  reader.readAsDataURL(blob);
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function stroke(event) {
  const place = at(event);
  paint.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  paint.strokeStyle = "white";
  paint.lineWidth = (size.value / 100) * Math.max(mask.width, mask.height);
  paint.lineCap = paint.lineJoin = "round";
  paint.beginPath();
  paint.moveTo(...last);
  paint.lineTo(...place);
  paint.stroke();
  last = place;
  show();
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = at(event);
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => last && stroke(event));
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => {
    if (last) tell();
    last = null;
  });

const doing = {
  erase(button) {
    erasing = !erasing;
    button.setAttribute("aria-pressed", erasing);
  },
  clear() {
    paint.clearRect(0, 0, mask.width, mask.height);
    show();
    tell();
  },
  remove() {
    [picture, source, file.value] = [null, "", ""];
    part(".paint").hidden = true;
    part(".put").hidden = false;
    tell();
  },
};
for (const button of element.querySelectorAll("button[data-do]"))
  button.addEventListener("click", () => doing[button.dataset.do](button));

file.addEventListener("change", () => put(file.files[0]));
document.addEventListener("paste", (event) => {
  const image = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (image && element.offsetParent) put(image);
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  put(event.dataTransfer.files[0]);
});
