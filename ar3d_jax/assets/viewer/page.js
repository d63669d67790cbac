// Shows each mesh once its box is near the screen. Meshes are gzipped GLBs in base64,
// in the page itself; nothing is fetched from anywhere else.
"use strict";

const drawing = document.createElement("canvas").getContext("webgl2") !== null;

async function show(box) {
  if (!drawing) return fail(box);
  const packed = atob(document.getElementById(box.dataset.mesh).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const glb = await new Response(stream).blob();
  const viewer = document.createElement("model-viewer");
  viewer.setAttribute("loading", "eager");
  viewer.setAttribute("camera-controls", "");
  viewer.setAttribute("camera-orbit", "35deg 65deg auto");
  viewer.setAttribute("interaction-prompt", "none");
  viewer.setAttribute("touch-action", "pan-y");
  viewer.setAttribute("shadow-intensity", "0.6");
  viewer.setAttribute("exposure", "0.9");
  viewer.setAttribute("environment-image", "legacy"); // built in; lit from one side
  viewer.setAttribute("disable-zoom", ""); // the wheel scrolls the page ...
  viewer.addEventListener("pointerdown", () => viewer.removeAttribute("disable-zoom"));
  viewer.addEventListener("pointerleave", () => viewer.setAttribute("disable-zoom", ""));
  viewer.addEventListener("load", () => {
    paint(viewer.model.materials);
    box.dataset.state = "shown";
  });
  viewer.addEventListener("error", () => fail(box));
  viewer.src = URL.createObjectURL(new Blob([glb], { type: "model/gltf-binary" }));
  box.replaceChildren(viewer);
}

// glTF's look of geometry without a material is a white mirror: grey clay instead.
function paint(materials) {
  for (const material of materials.filter((material) => material.name === "Default")) {
    material.pbrMetallicRoughness.setBaseColorFactor([0.16, 0.17, 0.19, 1]);
    material.pbrMetallicRoughness.setMetallicFactor(0);
    material.pbrMetallicRoughness.setRoughnessFactor(0.8);
  }
}

function fail(box) {
  box.dataset.state = "failed";
  box.textContent = "This browser cannot show the mesh; see its link.";
}

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting)) {
      near.unobserve(entry.target);
      show(entry.target).catch(() => fail(entry.target));
    }
  },
  { rootMargin: "200px" },
);
document.querySelectorAll(".viewer").forEach((box) => near.observe(box));
